//! The judge of every cover: shares only [`Cube`] with the search, and no set algebra.

use super::Cube;

/// What is wrong with a cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// Two entries match one ID: a stream match conflict (contract I-1).
    #[error("{0} and {1} overlap")]
    Overlap(Cube, Cube),
    /// IDs that should be captured are not.
    #[error("{0} is not captured")]
    Missed(Cube),
    /// IDs are captured that may not be.
    #[error("{0} is captured and should not be")]
    Captured(Cube),
    /// The check would take more than its bound of steps. Nothing is known of the cover.
    #[error("too complex to check within {limit} steps")]
    Unchecked {
        /// The bound.
        limit: usize,
    },
}

/// Whether `cover` is pairwise disjoint, captures all of `wanted`, and nothing outside `wanted` and `unused`.
///
/// The inputs may overlap in any way. Needs no memory.
///
/// # Errors
///
/// The first [`Flaw`] found; [`Flaw::Unchecked`] after a million steps, each linear in the lists.
pub fn check(wanted: &[Cube], unused: &[Cube], cover: &[Cube]) -> Result<(), Flaw> {
    for (index, &one) in cover.iter().enumerate() {
        if let Some(&two) = cover.iter().skip(index.saturating_add(1)).find(|two| one.meets(**two)) {
            return Err(Flaw::Overlap(one, two));
        }
    }
    let mut steps = STEPS;
    for &cube in wanted {
        if let Some(piece) = uncovered(cube, cover, &[], &mut steps)? {
            return Err(Flaw::Missed(piece));
        }
    }
    for &cube in cover {
        if let Some(piece) = uncovered(cube, wanted, unused, &mut steps)? {
            return Err(Flaw::Captured(piece));
        }
    }
    Ok(())
}

/// A piece of `cube` that no cube of either list meets, if there is one: halves are looked at until each lies inside
/// a listed cube or outside all.
fn uncovered(cube: Cube, one: &[Cube], two: &[Cube], steps: &mut usize) -> Result<Option<Cube>, Flaw> {
    // A half has one ignored bit less than its whole, so at most one half for each of 32 bits waits.
    let mut waiting = [None; 33];
    let mut depth = 0usize;
    let mut next = Some(cube);
    while let Some(piece) = next {
        *steps = steps.checked_sub(1).ok_or(Flaw::Unchecked { limit: STEPS })?;
        let widest = one
            .iter()
            .chain(two)
            .filter(|listed| listed.meets(piece))
            .max_by_key(|listed| (listed.mask() & piece.mask()).count_ones());
        let Some(&widest) = widest else { return Ok(Some(piece)) };
        let open = piece.mask() & !widest.mask();
        let bit = open & open.wrapping_neg();
        if bit == 0 {
            depth = depth.saturating_sub(1);
            next = waiting.get_mut(depth).and_then(Option::take);
            continue;
        }
        let mask = piece.mask() & !bit;
        if let Some(slot) = waiting.get_mut(depth) {
            *slot = Some(Cube::new(piece.id(), mask));
            depth = depth.saturating_add(1);
        }
        next = Some(Cube::new(piece.id() | bit, mask));
    }
    Ok(None)
}

const STEPS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: [Cube; 2] = [Cube::new(0x480, 0x1f), Cube::new(0x4a0, 0x1f)];

    #[test]
    fn a_right_cover_passes() {
        assert_eq!(check(&WANTED, &[], &[Cube::new(0x480, 0x3f)]), Ok(()));
        assert_eq!(check(&WANTED, &[], &WANTED), Ok(()));
        assert_eq!(check(&[], &[], &[]), Ok(()));
        assert_eq!(check(&[Cube::new(0, u32::MAX)], &[], &[Cube::new(0, u32::MAX)]), Ok(()));
    }

    #[test]
    fn each_flaw_is_named() {
        let twice = [Cube::new(0x480, 0x3f), Cube::new(0x4a0, 0)];
        assert_eq!(check(&WANTED, &[], &twice), Err(Flaw::Overlap(twice[0], twice[1])));
        assert_eq!(check(&WANTED, &[], &WANTED[..1]), Err(Flaw::Missed(WANTED[1])));
        let wide = [Cube::new(0x480, 0x7f)];
        assert!(matches!(check(&WANTED, &[], &wide), Err(Flaw::Captured(piece)) if wide[0].contains(piece)));
        assert_eq!(check(&WANTED, &[Cube::new(0x4c0, 0x3f)], &wide), Ok(()));
        let narrow = [Cube::new(0x480, 0x3e)];
        assert!(matches!(check(&WANTED, &[], &narrow), Err(Flaw::Missed(piece)) if piece.id() & 1 == 1));
    }

    #[test]
    fn overlapping_input_is_no_flaw() {
        let wanted = [Cube::new(0, 0b0011), Cube::new(0, 0b0101), Cube::new(0, 0b0110), Cube::new(0b111, 0)];
        assert_eq!(check(&wanted, &[], &[Cube::new(0, 0b111)]), Ok(()));
    }
}
