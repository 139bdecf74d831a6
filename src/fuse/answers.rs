//! Answers of small writes, given to the kernel a few at a time where several are under way.
//!
//! Each answer wakes who asked, if that sleeps; on few processors this takes as long as the write. Given one right after the other,
//! the second finds it awake.
//!
//! Invariants: what is kept is given by whoever ends next, so that nothing is kept when no small write is under way, and at most
//! [`AT_ONCE`] - 1 at any time; after a write that had to wait, which others may be doing just then, nothing stays kept.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Answers given one after the other.
pub(super) const AT_ONCE: usize = 4;
/// An answer is kept only while so many other small writes are under way: with fewer in its queue a program would miss it.
const BESIDE_MIN: usize = 3;
/// Who took longer has waited for a disk.
const QUICK: Duration = Duration::from_millis(1);

/// Those to the writes of one open file: they wake one program, most often.
pub(super) struct Answers<T>(Mutex<Inner<T>>);

struct Inner<T> {
    under_way: usize,
    kept: [Option<T>; AT_ONCE],
}

/// A small write under way.
pub(super) struct UnderWay(Instant);

impl<T> Answers<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Inner { under_way: 0, kept: [const { None }; AT_ONCE] }))
    }

    /// A small write begins, which waits for no disk but to make room; it must [end](Self::end).
    pub(super) fn begin(&self) -> UnderWay {
        self.0.lock().under_way += 1;
        UnderWay(Instant::now())
    }

    /// It has ended. The answers to give now: none, or all that were kept and this one.
    pub(super) fn end(&self, answer: T, write: UnderWay) -> [Option<T>; AT_ONCE] {
        let was_quick = write.0.elapsed() <= QUICK;
        let mut inner = self.0.lock();
        inner.under_way -= 1;
        let free = inner.kept.iter().position(Option::is_none).expect("a full row is given at once");
        inner.kept[free] = Some(answer);
        let waits = was_quick && inner.under_way >= BESIDE_MIN && free + 1 < AT_ONCE;
        if waits { [const { None }; AT_ONCE] } else { std::mem::take(&mut inner.kept) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u32; 0] = [];

    fn given(answers: [Option<u32>; AT_ONCE]) -> Vec<u32> {
        answers.into_iter().flatten().collect()
    }

    #[test]
    fn one_by_one_is_answered_at_once() {
        let answers = Answers::new();
        for answer in 0..10 {
            let write = answers.begin();
            assert_eq!(given(answers.end(answer, write)), [answer]);
        }
    }

    #[test]
    fn who_has_few_beside_keeps_nothing() {
        let answers = Answers::new();
        let mut writes: Vec<_> = (0..=BESIDE_MIN + 1).map(|_| answers.begin()).collect();
        assert_eq!(given(answers.end(0, writes.pop().unwrap())), NONE, "as many beside");
        assert_eq!(given(answers.end(1, writes.pop().unwrap())), NONE, "just enough beside");
        assert_eq!(given(answers.end(2, writes.pop().unwrap())), [0, 1, 2]);
        assert_eq!(given(answers.end(3, writes.pop().unwrap())), [3]);
    }

    #[test]
    fn a_slow_one_takes_all_with_it() {
        let answers = Answers::new();
        let _beside: Vec<_> = (0..8).map(|_| answers.begin()).collect();
        let (quick, slow) = (answers.begin(), answers.begin());
        assert_eq!(given(answers.end(0, quick)), NONE);
        let slow = UnderWay(slow.0.checked_sub(2 * QUICK).unwrap());
        assert_eq!(given(answers.end(1, slow)), [0, 1]);
    }

    #[test]
    fn whatever_the_order_each_is_given_once_and_none_stays() {
        let answers = Answers::new();
        let mut random = 1u64;
        let mut draw = |n: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % n
        };
        let (mut under_way, mut out) = (Vec::new(), Vec::new());
        let mut begun = 0;
        while begun < 10_000 || !under_way.is_empty() {
            if begun < 10_000 && under_way.len() < 8 && draw(2) == 0 {
                under_way.push((begun, answers.begin()));
                begun += 1;
            } else if !under_way.is_empty() {
                let (number, write) = under_way.swap_remove(draw(under_way.len()));
                out.extend(given(answers.end(number, write)));
                let kept = answers.0.lock().kept.iter().flatten().count();
                assert!(kept < AT_ONCE && (kept == 0 || !under_way.is_empty()), "{kept} kept");
            }
        }
        out.sort_unstable();
        assert!(out.into_iter().eq(0..10_000));
    }
}
