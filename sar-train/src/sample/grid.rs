//! Which classes stand where in a grid of samples.

/// Largest number of images in a grid, in whole rounds of the classes.
const GRID: usize = 40;

/// Labels of a grid: in each row every class, or the first ones if there are more than [`columns`].
pub(crate) fn grid_labels(classes: usize) -> Vec<u32> {
    let columns = columns(classes);
    let rows = (GRID / columns).max(1);
    (0..rows * columns).map(|i| (i % columns) as u32).collect()
}

/// Number of columns of a grid: one per class, up to as many as are readable.
pub(crate) fn columns(classes: usize) -> usize {
    classes.clamp(1, 10)
}
