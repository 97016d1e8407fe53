//! Work on several threads: the caller's, and those of rayon's pool.

use crate::float_env;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Does tasks in parallel: on this thread, and on so many of the pool's that they are as many as that has. What comes back is
/// what each of them has made, in no order; there is at least one.
///
/// The caller works too because it is awake: to wake two threads while it falls asleep took as long as half a million
/// elements. Each takes the next half of its share of what is left, so that most of what it does lies side by side (a kernel asks
/// for memory ahead), and in the end all finish with a task or so of each other.
pub(crate) fn share<T: Send, S: Send>(
    tasks: impl ExactSizeIterator<Item = T> + Send,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) + Sync,
) -> Vec<S> {
    if tasks.len() < 2 {
        let mut made = start();
        tasks.for_each(|task| work(&mut made, task));
        return vec![made];
    }
    if rayon::current_thread_index().is_none() && !float_env::is_ieee_default() {
        // Whose float arithmetic is its own would take the long way; the pool's threads need not.
        return rayon::scope(|_| share_out(tasks, &start, &work));
    }
    share_out(tasks, &start, &work)
}

fn share_out<T: Send, S: Send>(
    tasks: impl ExactSizeIterator<Item = T> + Send,
    start: &(impl Fn() -> S + Sync),
    work: &(impl Fn(&mut S, T) + Sync),
) -> Vec<S> {
    let threads = rayon::current_num_threads().min(tasks.len());
    let (tasks, done) = (Mutex::new(tasks), Mutex::new(vec![]));
    let one = || {
        let (mut made, mut next) = (start(), vec![]);
        loop {
            {
                let mut tasks = locked(&tasks);
                let n = (tasks.len() / (2 * threads)).max(1);
                next.extend(tasks.by_ref().take(n));
            }
            if next.is_empty() {
                break;
            }
            next.drain(..).for_each(|task| work(&mut made, task));
        }
        locked(&done).push(made);
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| one());
        }
        one();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A task that panics does so outside of the locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_done_once_on_the_callers_thread_or_the_pools() {
        for n in [0, 1, 2, 3, 50, 1000] {
            let all = || share(0..n, Vec::new, |made, task| made.push((task, rayon::current_thread_index())));
            let check = |made: Vec<Vec<(usize, Option<usize>)>>, from_outside: bool| {
                assert!((1..=rayon::current_num_threads()).contains(&made.len()));
                for made in &made {
                    // Threads go forward, each by itself.
                    assert!(made.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 == two[1].1));
                }
                assert!(from_outside || made.iter().flatten().all(|(_, thread)| thread.is_some()));
                let mut tasks: Vec<usize> = made.into_iter().flatten().map(|(task, _)| task).collect();
                tasks.sort_unstable();
                assert!(tasks.into_iter().eq(0..n));
            };
            check(all(), true);
            check(rayon::scope(|_| all()), false);
            // Tasks may have tasks of their own.
            let sums = share(
                0..n,
                || 0,
                |sum, i| {
                    *sum += share(0..i, || 0, |sum, j| *sum += j).into_iter().sum::<usize>();
                },
            );
            let expected: usize = (0..n).map(|i: usize| i * i.saturating_sub(1) / 2).sum();
            assert_eq!(sums.into_iter().sum::<usize>(), expected);
        }
    }

    #[test]
    fn a_panic_of_a_task_is_the_callers() {
        let panics = || share(0..100, || (), |(), task| assert!(task != 70, "of task 70"));
        let message = std::panic::catch_unwind(panics).unwrap_err();
        assert_eq!(message.downcast_ref::<&str>(), Some(&"of task 70"));
    }
}
