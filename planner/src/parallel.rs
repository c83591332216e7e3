//! One function over many items, on several threads.

/// What `one` makes of each item, in their order; none where it made none of one of them. A thread takes
/// items that follow each other.
pub(crate) fn map<T: Sync, U: Send>(
    items: &[T],
    threads: usize,
    one: impl Fn(&T) -> Option<U> + Sync,
) -> Option<Vec<U>> {
    let threads = threads.clamp(1, items.len().max(1));
    if threads == 1 {
        return items.iter().map(one).collect();
    }
    let (share, one) = (items.len().div_ceil(threads), &one);
    std::thread::scope(|scope| {
        let handles: Vec<_> = items
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(one).collect::<Option<Vec<_>>>()))
            .collect();
        // A thread that died takes its part of the answer with it; its panic goes on here.
        handles
            .into_iter()
            .map(|handle| match handle.join() {
                Ok(part) => part,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Option<Vec<_>>>()
            .map(|parts| parts.into_iter().flatten().collect())
    })
}
