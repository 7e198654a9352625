//! The judge of every cover: shares only [`Cube`] with the search, and no list of disjoint cubes.

use smallvec::SmallVec;

use super::cube::Cube;
use crate::few;

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

/// Whether `cover` is pairwise disjoint and captures exactly what is `wanted`, which may overlap in any way.
///
/// Needs no memory.
///
/// # Errors
///
/// The first [`Flaw`] found; [`Flaw::Unchecked`] after some millions of comparisons.
pub fn check(wanted: &[Cube], cover: &[Cube]) -> Result<(), Flaw> {
    for (one, next) in cover.iter().zip(1..) {
        if let Some(two) = cover.iter().skip(next).find(|two| one.meets(**two)) {
            return Err(Flaw::Overlap(*one, *two));
        }
    }
    let mut steps = STEPS;
    for &cube in wanted {
        uncovered(cube, cover, &mut steps)?.map_or(Ok(()), |piece| Err(Flaw::Missed(piece)))?;
    }
    for &cube in cover {
        uncovered(cube, wanted, &mut steps)?.map_or(Ok(()), |piece| Err(Flaw::Captured(piece)))?;
    }
    Ok(())
}

/// A piece of `cube` that no listed cube meets, if there is one: halves are looked at until each lies inside a listed
/// cube or outside all.
fn uncovered(cube: Cube, listed: &[Cube], steps: &mut usize) -> Result<Option<Cube>, Flaw> {
    // A half has one ignored bit less than its whole, so at most one half for each of 32 bits waits.
    let mut waiting = SmallVec::<[Cube; 36]>::new();
    few::put(&mut waiting, cube);
    while let Some(piece) = waiting.pop() {
        *steps = steps.checked_sub(listed.len()).ok_or(Flaw::Unchecked { limit: STEPS })?;
        let common = |listed: &&Cube| (listed.mask() & piece.mask()).count_ones();
        let Some(widest) = listed.iter().filter(|listed| listed.meets(piece)).max_by_key(common) else {
            return Ok(Some(piece));
        };
        let open = piece.mask() & !widest.mask();
        if open != 0 {
            let bit = open & open.wrapping_neg();
            let mask = piece.mask() & !bit;
            let halves = [Cube::new(piece.id(), mask), Cube::new(piece.id() | bit, mask)];
            if !few::put_all(&mut waiting, halves) {
                return Err(Flaw::Unchecked { limit: STEPS });
            }
        }
    }
    Ok(None)
}

/// Comparisons of two cubes.
const STEPS: usize = 1 << 23;

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: [Cube; 2] = [Cube::new(0x480, 0x1f), Cube::new(0x4a0, 0x1f)];

    #[test]
    fn a_right_cover_passes() {
        assert_eq!(check(&WANTED, &[Cube::new(0x480, 0x3f)]), Ok(()));
        assert_eq!(check(&WANTED, &WANTED), Ok(()));
        assert_eq!(check(&[], &[]), Ok(()));
        assert_eq!(check(&[Cube::new(0, u32::MAX)], &[Cube::new(0, u32::MAX)]), Ok(()));
        let halves = [Cube::new(0, u32::MAX - 1), Cube::new(1, u32::MAX - 1)];
        assert_eq!(check(&[Cube::new(0, u32::MAX)], &halves), Ok(()));
    }

    #[test]
    fn each_flaw_is_named() {
        let twice = [Cube::new(0x480, 0x3f), Cube::new(0x4a0, 0)];
        assert_eq!(check(&WANTED, &twice), Err(Flaw::Overlap(twice[0], twice[1])));
        assert_eq!(check(&WANTED, &WANTED[..1]), Err(Flaw::Missed(WANTED[1])));
        let wide = [Cube::new(0x480, 0x7f)];
        assert!(matches!(check(&WANTED, &wide), Err(Flaw::Captured(piece)) if wide[0].contains(piece)));
        let narrow = [Cube::new(0x480, 0x3e)];
        assert!(matches!(check(&WANTED, &narrow), Err(Flaw::Missed(piece)) if piece.id() & 1 == 1));
        assert_eq!(check(&WANTED, &[Cube::point(3)]), Err(Flaw::Missed(WANTED[0])));
        assert_eq!(check(&[], &WANTED), Err(Flaw::Captured(WANTED[0])));
    }

    #[test]
    fn overlapping_input_is_no_flaw() {
        let wanted = [Cube::new(0, 0b0011), Cube::new(0, 0b0101), Cube::new(0, 0b0110), Cube::new(0b111, 0)];
        assert_eq!(check(&wanted, &[Cube::new(0, 0b111)]), Ok(()));
    }
}
