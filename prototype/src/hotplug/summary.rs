//! What is printed: what is on the board, who does what, and what came out.

use super::backplane::VIRTUAL;
use super::integrator::{BOARD_BANKS, BOARD_ENTRIES};
use super::ledger::Dma;
use super::nodes;
use super::rig::Rig;
use super::tally::{FUNCTIONS, GUESTS, OVERLAYS, Row, Work};
use super::tenants;
use crate::report::{Page, Set, Table};
use crate::stage::many;

/// Before it begins: the board, and the threads.
pub(super) fn begin(page: &mut Page) {
    page.heading("The board");
    page.text(
        2,
        &format!(
            "One MMU-500 with {} and {}, which is less than all would need at once. Behind it are the nodes of a device \
             tree, and a host bridge with three slots, all of them empty: for a card with a switch and two endpoints, for \
             a network card with up to {}, and for a card with two functions that nothing keeps apart.",
            counted(BOARD_ENTRIES.into(), "stream-map entry", "stream-map entries"),
            many(BOARD_BANKS.into(), "context bank"),
            many(VIRTUAL.into(), "virtual function"),
        ),
    );
    page.heading("Three threads on one service, at the same time");
    let mut table = Table::new(&[("thread", Set::Left), ("what it does", Set::Wrap)]);
    let overlays = many(nodes::OVERLAYS.len(), "overlay");
    let guests = many(tenants::GUESTS, "guest");
    let threads = [
        (
            FUNCTIONS,
            "plugs cards in, takes them out on request, and pulls them out, also in the middle of any other operation; \
             switches virtual functions on and off"
                .to_owned(),
        ),
        (
            OVERLAYS,
            format!(
                "applies and reverts {overlays}, one of which brings an SMMU with its masters; also twice, and onto what \
                 has gone"
            ),
        ),
        (
            GUESTS,
            format!(
                "creates and destroys up to {guests}; gives them what is registered, moves it, takes it back; unmaps \
                 and flushes"
            ),
        ),
    ];
    for (thread, what) in threads {
        table.row([thread.to_owned(), what]);
    }
    table.print(page, 2);
    page.text(
        2,
        "All devices try DMA meanwhile, also in their hooks. What a thread does is the same in each run; how the threads \
         meet is not, and so the figures differ.",
    );
}

/// After it has ended: the whole text, and the exit status.
pub(super) fn end(mut page: Page, rig: &Rig) -> (String, u8) {
    let score = rig.tally.score();
    page.heading("What they came to");
    let columns = [
        ("thread", Set::Left),
        ("operation", Set::Left),
        ("done", Set::Right),
        ("refused", Set::Right),
        ("why", Set::Wrap),
    ];
    let (mut table, mut last) = (Table::new(&columns), "");
    for (work, row) in &score.rows {
        let thread = if work.thread() == last { "" } else { work.thread() };
        last = work.thread();
        let counts = [row.done, row.all_refused()].map(|count| count.to_string());
        let [done, refused] = counts;
        table.row([thread.to_owned(), work.words().to_owned(), done, refused, why(row)]);
    }
    table.print(&mut page, 2);

    let Dma { reached, faulted, in_hooks } = rig.ledger.dma();
    let (writes, seen) = rig.ledger.verdict();
    let writes = usize::try_from(writes).unwrap_or(usize::MAX);
    let violations: Vec<&String> = score.violations.iter().chain(&seen).collect();
    page.gap();
    page.text(
        0,
        &format!(
            "DMA: {} reached the owner's page, {faulted} faulted, {in_hooks} of them in a hook while the device was \
             changing owners.",
            many(reached, "transaction"),
        ),
    );
    page.text(0, &format!("After each of {} all streams were looked at.", many(writes, "register write")));
    if violations.is_empty() {
        page.text(
            0,
            "The end is the start: registry, entries, banks, the ports' registers, and the tree byte for byte. Then every \
             entry and every bank could be had again.",
        );
    }
    for violation in violations.iter().take(SHOWN) {
        page.text(0, &format!("FAILED: {violation}"));
    }
    let switches = score.count(|work| matches!(work, Work::SwitchOn | Work::SwitchOff));
    let overlays = score.count(|work| matches!(work, Work::Apply | Work::Revert));
    page.line(format!(
        "hotplug: {}, {}, {}, {}, {}",
        many(score.count(|_| true), "operation"),
        many(score.events, "hot-plug event"),
        counted(switches, "VF switch", "VF switches"),
        many(overlays, "overlay"),
        many(violations.len(), "violation"),
    ));
    (page.into_text(), u8::from(!violations.is_empty() || writes == 0))
}

/// The reasons of refusals, the most frequent first.
fn why(row: &Row) -> String {
    let mut reasons: Vec<(&str, usize)> = row.refused.iter().map(|(reason, count)| (*reason, *count)).collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ")
}

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// How many violations are told; the first tell the story.
const SHOWN: usize = 20;
