//! The table, what stands beside it, and the bounds.

use super::{
    ALLOCATIONS, CARRIED, CASES, Case, Cost, FLUSH, GROWING, GROWTH, HEAP, KEPT, MANY_STREAMS, Measured, OPERATIONS,
    Results,
};

/// Prints all of it, and says whether everything is within its bounds.
pub(super) fn print(results: &Results, measured_on: &str, markdown: bool) -> bool {
    let show = |title: &str, rows: Vec<Vec<String>>| {
        println!("{}{title}\n", if markdown { "### " } else { "" });
        rows_of(&rows, markdown).iter().for_each(|line| println!("{line}"));
        println!();
    };
    println!("Instructions on {measured_on}.\n");
    show("Instructions: ours, Xen's, ours / Xen's", instructions(results));
    show("Allocations (and bytes that an add carries)", allocations(results));
    show("Heap that is kept, bytes", heap(results));
    let bounds = bounds(results);
    let within = bounds.iter().all(Bound::holds);
    let head = ["bound", "figure", "at most", "", "aim"].map(String::from).to_vec();
    show("Bounds", std::iter::once(head).chain(bounds.iter().map(Bound::row)).collect());
    within
}

fn instructions(results: &Results) -> Vec<Vec<String>> {
    let mut head = vec!["operation".to_owned()];
    head.extend(CASES.iter().map(|case| case.short.to_owned()));
    head.extend(GROWING.iter().map(|(short, ..)| (*short).to_owned()));
    let mut rows = vec![head];
    for operation in OPERATIONS {
        let ours = |name: &str| results.get(name).and_then(|measured| measured.instructions(operation));
        compare(&mut rows, operation, &ours, &|case| case.xen(operation));
    }
    let lives = |name: &str| results.get(name).and_then(Measured::life);
    compare(&mut rows, "add + first assign + deassign, last + remove", &lives, &Case::xen_life);
    rows
}

/// A row of ours; below it Xen's and the ratios, where it has any.
fn compare(
    rows: &mut Vec<Vec<String>>,
    name: &str,
    ours: &dyn Fn(&str) -> Option<u64>,
    xens: &dyn Fn(&Case) -> Option<u64>,
) {
    let mut row = vec![name.to_owned()];
    row.extend(CASES.iter().map(|case| or_dash(ours(case.name).map(grouped))));
    row.extend(GROWING.iter().map(|(_, from, to)| or_dash(ours(to).zip(ours(from)).map(ratio))));
    rows.push(row);
    if CASES.iter().all(|case| xens(case).is_none()) {
        return;
    }
    let cells = |cell: &dyn Fn(&Case) -> Option<String>| {
        CASES.iter().map(|case| cell(case).unwrap_or_default()).collect::<Vec<_>>()
    };
    let tail = || GROWING.iter().map(|_| String::new());
    let xen = cells(&|case| xens(case).map(grouped));
    let ratios = cells(&|case| ours(case.name).zip(xens(case)).map(ratio));
    rows.push(std::iter::once("· Xen".to_owned()).chain(xen).chain(tail()).collect());
    rows.push(std::iter::once("· ratio".to_owned()).chain(ratios).chain(tail()).collect());
}

fn allocations(results: &Results) -> Vec<Vec<String>> {
    let head = CASES.iter().map(|case| case.short.to_owned());
    let mut rows = vec![std::iter::once("operation".to_owned()).chain(head).collect::<Vec<_>>()];
    let row = |name: &str, operation: &str, figure: fn(&Cost) -> u64| {
        let cost = |case: &Case| results.get(case.name)?.costs.get(operation);
        let cells = CASES.iter().map(|case| or_dash(cost(case).map(|cost| grouped(figure(cost)))));
        std::iter::once(name.to_owned()).chain(cells).collect::<Vec<String>>()
    };
    for operation in OPERATIONS {
        rows.push(row(operation, operation, |cost| cost.allocations));
    }
    rows.push(row("bytes carried through an add", "add", |cost| cost.carried));
    rows
}

fn heap(results: &Results) -> Vec<Vec<String>> {
    let mut rows = vec![["of", "bytes"].map(String::from).to_vec()];
    let kept = results.get(HEAP).map(|measured| &measured.heap);
    for (name, what) in [
        ("a device with one stream", "device"),
        ("a domain", "domain"),
        ("an SMMU of 128 entries and 128 banks, without its registers", "SMMU"),
    ] {
        rows.push(vec![name.into(), or_dash(kept.and_then(|kept| kept.get(what)).copied().map(grouped))]);
    }
    rows
}

/// One bound. What was not measured does not hold.
struct Bound {
    what: String,
    figure: Option<u64>,
    most: u64,
    /// In percent, to be shown as a ratio.
    is_ratio: bool,
    aim: Option<u64>,
}

impl Bound {
    fn holds(&self) -> bool {
        self.figure.is_some_and(|figure| figure <= self.most)
    }

    fn row(&self) -> Vec<String> {
        let show = |value: u64| if self.is_ratio { ratio((value, 100)) } else { grouped(value) };
        let verdict = if self.holds() { "ok" } else { "PAST" };
        let reached = |aim: u64| if self.figure.is_some_and(|figure| figure <= aim) { " reached" } else { "" };
        let aim = self.aim.map(|aim| format!("{}{}", show(aim), reached(aim)));
        vec![
            self.what.clone(),
            or_dash(self.figure.map(show)),
            show(self.most),
            verdict.into(),
            aim.unwrap_or_default(),
        ]
    }
}

fn bounds(results: &Results) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let mut add = |what: String, figure, most, is_ratio, aim| bounds.push(Bound { what, figure, most, is_ratio, aim });
    let of = |name: &str| results.get(name);
    for case in CASES.iter().filter(|case| case.xen.is_some()) {
        let percent = of(case.name).and_then(Measured::life).zip(case.xen_life()).map(percent);
        add(format!("sum / Xen's: {}", case.name), percent, case.bound.0, true, Some(case.bound.1));
    }
    let most = |figure: &dyn Fn(&Case) -> Option<u64>| CASES.iter().filter_map(figure).max();
    for name in ["8 live banks", "127 live banks"] {
        let flush = of(name).and_then(|measured| measured.instructions("flush, a domain"));
        add(format!("flush of a domain, {name} of others"), flush, FLUSH, false, None);
    }
    let flush = most(&|case| of(case.name)?.instructions("flush, a domain"));
    add("flush of a domain, any case".into(), flush, FLUSH, false, None);
    for (short, from, to) in GROWING {
        for operation in OPERATIONS {
            let figure = |name: &str| of(name).and_then(|measured| measured.instructions(operation));
            add(format!("growth {short}: {operation}"), figure(to).zip(figure(from)).map(percent), GROWTH, true, None);
        }
    }
    add("heap of a device, kept".into(), of(HEAP).and_then(|all| all.heap.get("device").copied()), KEPT, false, None);
    let cost = |case: &Case, operation: &str| of(case.name).and_then(|all| all.costs.get(operation).copied());
    let one_stream = |case: &Case| cost(case, "add").filter(|_| case.name != MANY_STREAMS);
    add("heap carried through an add".into(), most(&|case| Some(one_stream(case)?.carried)), CARRIED, false, None);
    add("allocations: add".into(), most(&|case| Some(one_stream(case)?.allocations)), ALLOCATIONS, false, None);
    for operation in OPERATIONS.iter().filter(|operation| **operation != "add") {
        let figure = most(&|case| Some(cost(case, operation)?.allocations));
        add(format!("allocations: {operation}"), figure, u64::from(operation.starts_with("deassign")), false, None);
    }
    bounds
}

/// Rounded up: a figure that is past its bound is not shown as equal to it.
fn percent((figure, base): (u64, u64)) -> u64 {
    figure.saturating_mul(100).div_ceil(base.max(1))
}

fn ratio(figures: (u64, u64)) -> String {
    let percent = percent(figures);
    format!("{}.{:02}", percent / 100, percent % 100)
}

fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && digits.len().wrapping_sub(place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".into())
}

/// Lines with columns below each other. The first row is the head; all columns but the first are numbers.
fn rows_of(rows: &[Vec<String>], markdown: bool) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut lines = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let cells: Vec<String> = cells.collect();
        if markdown {
            lines.push(format!("| {} |", cells.join(" | ")));
            if number == 0 {
                lines.push(format!("|---|{}", "--:|".repeat(columns.saturating_sub(1))));
            }
        } else {
            lines.push(cells.join("  ").trim_end().to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{Bound, grouped, percent, ratio, rows_of};

    #[test]
    fn numbers_are_grouped_and_ratios_rounded_up() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(percent((301, 100)), 301);
        assert_eq!(ratio((1_001, 1_000)), "1.01");
    }

    #[test]
    fn what_was_not_measured_is_past_its_bound() {
        let bound = |figure| Bound { what: String::new(), figure, most: 5, is_ratio: false, aim: None };
        assert_eq!([bound(None), bound(Some(5)), bound(Some(6))].map(|one| one.holds()), [false, true, false]);
    }

    #[test]
    fn markdown_has_a_rule_under_its_head() {
        let rows = [["op", "x"], ["add", "1"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(rows_of(&rows, true), ["| op  | x |", "|---|--:|", "| add | 1 |"]);
    }
}
