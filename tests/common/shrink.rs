//! From a script that shows a failure to the shortest that still does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long to look for a shorter script.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a panic said.
pub fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_else(|| "a panic".into())
}

/// Runs a script; what it said if it failed.
pub fn failure(run: impl FnOnce()) -> Option<String> {
    catch_unwind(AssertUnwindSafe(run)).err().map(|panic| message_of(&*panic))
}

/// Does it; what it panics with is said to be of `name`.
pub fn named<T>(name: impl FnOnce() -> String, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| panic!("{}: {}", name(), message_of(&*panic)))
}

/// Runs `script` by `run`. If it fails, looks for a part of it that fails too, as short as can be found in a minute, and
/// panics with that; `name` says how to have it again.
pub fn run_or_shrink<S: Clone + std::fmt::Debug>(name: &str, script: &[S], run: impl Fn(&[S])) {
    let Some(first) = failure(|| run(script)) else { return };
    println!("{name}: {first}\nlooking for a shorter script that fails");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (shortest, why) = shortest(script, first, &run);
    std::panic::set_hook(hook);
    panic!(
        "{name}: the shortest of its scripts that fail has {} of {} steps, {shortest:?}: {why}",
        shortest.len(),
        script.len()
    );
}

/// Leaves out ever smaller pieces as long as what is left fails.
fn shortest<S: Clone>(script: &[S], why: String, run: &impl Fn(&[S])) -> (Vec<S>, String) {
    let (mut script, mut why) = (script.to_vec(), why);
    let began = Instant::now();
    let mut piece = script.len().div_ceil(2);
    while piece > 0 && began.elapsed() < PATIENCE {
        let mut at = 0;
        let mut shorter = false;
        while at < script.len() && began.elapsed() < PATIENCE {
            let end = (at + piece).min(script.len());
            let rest = [&script[..at], &script[end..]].concat();
            match failure(|| run(&rest)) {
                Some(now) => (script, why, shorter) = (rest, now, true),
                None => at = end,
            }
        }
        if !(shorter && piece == 1) {
            piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
        }
    }
    (script, why)
}
