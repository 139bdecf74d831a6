//! Answers of small writes, given to the kernel a few at a time where several are under way.
//!
//! Each answer wakes who asked, if that sleeps; on few processors this takes as long as the write. Given one right after the other,
//! the second finds it awake.
//!
//! Invariants: at most [`AT_ONCE`] - 1 are kept at any time, and none when no small write is under way; one is kept only beside
//! [`BESIDE_MIN`] writes that began just before, and until one of those that are under way ends beside fewer, or has waited itself. So it
//! waits for a disk only where several writes that began at the same moment all do.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Answers given one after the other.
pub(super) const AT_ONCE: usize = 4;
/// An answer is kept only while so many other small writes are under way: with fewer in its queue a program would miss it.
const BESIDE_MIN: usize = 3;
/// Who takes longer waits for a disk.
const QUICK: Duration = Duration::from_millis(1);
/// Writes of which it is known when they began; of more it is as if they had long ago.
const WATCHED: usize = 16;

/// Those to the writes of one open file: they wake one program, most often.
pub(super) struct Answers<T>(Mutex<Inner<T>>);

struct Inner<T> {
    /// When those that are under way began.
    begun: [Option<Instant>; WATCHED],
    kept: [Option<T>; AT_ONCE],
}

/// A small write under way: its place, if it has one, among [`Inner::begun`].
pub(super) struct UnderWay(Option<usize>);

impl<T> Answers<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Inner { begun: [None; WATCHED], kept: [const { None }; AT_ONCE] }))
    }

    /// A small write begins, which must [end](Self::end).
    pub(super) fn begin(&self) -> UnderWay {
        self.begin_at(Instant::now())
    }

    /// It has ended. The answers to give now: none, or all that were kept and this one.
    pub(super) fn end(&self, answer: T, write: UnderWay) -> [Option<T>; AT_ONCE] {
        self.end_at(Instant::now(), answer, write)
    }

    fn begin_at(&self, now: Instant) -> UnderWay {
        let mut inner = self.0.lock();
        let place = inner.begun.iter().position(Option::is_none);
        if let Some(place) = place {
            inner.begun[place] = Some(now);
        }
        UnderWay(place)
    }

    fn end_at(&self, now: Instant, answer: T, write: UnderWay) -> [Option<T>; AT_ONCE] {
        let is_quick = |begun: &Instant| now.saturating_duration_since(*begun) <= QUICK;
        let mut inner = self.0.lock();
        let was_quick =
            write.0.and_then(|place| inner.begun[place].take()).is_some_and(|begun| is_quick(&begun));
        let beside = inner.begun.iter().flatten().filter(|begun| is_quick(begun)).count();
        let free = inner.kept.iter().position(Option::is_none).expect("a full row is given at once");
        inner.kept[free] = Some(answer);
        let waits = was_quick && beside >= BESIDE_MIN && free + 1 < AT_ONCE;
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
        let (answers, now) = (Answers::new(), Instant::now());
        for answer in 0..10 {
            let write = answers.begin_at(now);
            assert_eq!(given(answers.end_at(now, answer, write)), [answer]);
        }
    }

    #[test]
    fn who_has_few_beside_keeps_nothing() {
        let (answers, now) = (Answers::new(), Instant::now());
        let mut writes: Vec<_> = (0..=BESIDE_MIN + 1).map(|_| answers.begin_at(now)).collect();
        let mut end = |answer| given(answers.end_at(now, answer, writes.pop().unwrap()));
        assert_eq!(end(0), NONE, "more than enough beside");
        assert_eq!(end(1), NONE, "just enough beside");
        assert_eq!(end(2), [0, 1, 2]);
        assert_eq!(end(3), [3]);
    }

    #[test]
    fn no_more_are_kept_than_are_given_at_once() {
        let (answers, now) = (Answers::new(), Instant::now());
        let mut writes: Vec<_> = (0..WATCHED).map(|_| answers.begin_at(now)).collect();
        let mut end = |answer| given(answers.end_at(now, answer, writes.pop().unwrap()));
        assert_eq!((end(0), end(1), end(2)), (vec![], vec![], vec![]));
        assert_eq!(end(3), [0, 1, 2, 3]);
    }

    #[test]
    fn a_slow_one_takes_all_with_it() {
        let (answers, begin) = (Answers::new(), Instant::now());
        let slow = answers.begin_at(begin);
        let now = begin + 2 * QUICK;
        let _beside: Vec<_> = (0..8).map(|_| answers.begin_at(now)).collect();
        let quick = answers.begin_at(now);
        assert_eq!(given(answers.end_at(now, 0, quick)), NONE);
        assert_eq!(given(answers.end_at(now, 1, slow)), [0, 1]);
    }

    #[test]
    fn nothing_is_kept_beside_what_waits() {
        let (answers, begin) = (Answers::new(), Instant::now());
        let _waiting: Vec<_> = (0..WATCHED - 1).map(|_| answers.begin_at(begin)).collect();
        let now = begin + 2 * QUICK;
        let (last, more) = (answers.begin_at(now), answers.begin_at(now));
        assert!(more.0.is_none(), "more are watched than there are places");
        assert_eq!(given(answers.end_at(now, 0, more)), [0]);
        assert_eq!(given(answers.end_at(now, 1, last)), [1]);
    }

    #[test]
    fn whatever_the_order_each_is_given_once_and_none_stays() {
        let (answers, begin) = (Answers::new(), Instant::now());
        let mut random = 1u64;
        let mut draw = |n: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % n
        };
        let (mut under_way, mut out) = (Vec::new(), Vec::new());
        let (mut begun, mut step, mut most_kept) = (0, 0, 0);
        while begun < 10_000 || !under_way.is_empty() {
            step += 1;
            let now = begin + step * QUICK / 64;
            if begun < 10_000 && under_way.len() < WATCHED + 4 && draw(2) == 0 {
                under_way.push((begun, answers.begin_at(now)));
                begun += 1;
            } else if !under_way.is_empty() {
                let (number, write) = under_way.swap_remove(draw(under_way.len()));
                out.extend(given(answers.end_at(now, number, write)));
                let kept = answers.0.lock().kept.iter().flatten().count();
                assert!(kept < AT_ONCE && (kept == 0 || !under_way.is_empty()), "{kept} kept");
                most_kept = most_kept.max(kept);
            }
        }
        assert_eq!((out.len(), most_kept), (10_000, AT_ONCE - 1));
        out.sort_unstable();
        assert!(out.into_iter().eq(0..10_000));
    }
}
