//! Steps of a fold that become durable while the next one moves: moving keeps a processor busy, a flush the disk.

use std::panic::resume_unwind;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::super::host_error::Result;

/// At most one step under way, in a thread of its own.
pub(super) struct Steps<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    under_way: Option<ScopedJoinHandle<'scope, Result<()>>>,
}

impl<'scope, 'env> Steps<'scope, 'env> {
    pub fn new(scope: &'scope Scope<'scope, 'env>) -> Self {
        Self { scope, under_way: None }
    }

    /// Begins a step once the one before is done, so that they are recorded in their order. The answer is of that one: how this one
    /// ends is told by the next call, or by [`Steps::end`].
    pub fn next(&mut self, step: impl FnOnce() -> Result<()> + Send + Clone + 'scope) -> Result<()> {
        self.end()?;
        let in_thread = step.clone();
        match Builder::new().name("terrane-step".into()).spawn_scoped(self.scope, in_thread) {
            Ok(thread) => self.under_way = Some(thread),
            // No thread is to be had: done here it is only slower.
            Err(_) => step()?,
        }
        Ok(())
    }

    /// Waits for the step that is under way, if one is.
    pub fn end(&mut self) -> Result<()> {
        match self.under_way.take().map(ScopedJoinHandle::join) {
            Some(Ok(done)) => done,
            Some(Err(panic)) => resume_unwind(panic),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::volume::host_error::HostError;

    fn failure() -> HostError {
        HostError::refused("a step fails", "nothing")
    }

    #[test]
    fn steps_are_done_in_their_order_beside_the_caller() {
        let done = Mutex::new(Vec::new());
        let gate = Mutex::new(());
        std::thread::scope(|scope| {
            let mut steps = Steps::new(scope);
            let closed = gate.lock();
            let (done, gate) = (&done, &gate);
            steps
                .next(move || {
                    drop(gate.lock());
                    std::thread::sleep(Duration::from_millis(20));
                    done.lock().push(0);
                    Ok(())
                })
                .unwrap();
            // The first waits for this: it is not done before the call returns.
            done.lock().push(100);
            drop(closed);
            for n in 1..4 {
                let step = move || {
                    done.lock().push(n);
                    Ok(())
                };
                steps.next(step).unwrap();
            }
            steps.end().unwrap();
            assert_eq!(*done.lock(), [100, 0, 1, 2, 3]);
        });
    }

    #[test]
    fn an_error_is_told_by_what_comes_next_and_nothing_is_begun() {
        std::thread::scope(|scope| {
            let mut steps = Steps::new(scope);
            steps.next(|| Err(failure())).unwrap();
            steps.next(|| unreachable!("the one before failed")).unwrap_err();
            steps.end().unwrap();
            steps.next(|| Err(failure())).unwrap();
            steps.end().unwrap_err();
        });
    }

    #[test]
    fn a_panic_is_passed_on() {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                let mut steps = Steps::new(scope);
                steps.next(|| panic!("in a step")).unwrap();
                steps.end()
            })
        }));
        assert!(panicked.is_err());
    }
}
