//! Rows of the class table, and their gradient.

use crate::Element;

/// `cond[b, c] = table[labels_b, c]`; the labels have been checked.
pub(crate) fn forward<T: Element>(width: usize, labels: &[u32], table: &[T], cond: &mut [T]) {
    if width == 0 {
        return;
    }
    for (&label, cond) in labels.iter().zip(cond.chunks_exact_mut(width)) {
        cond.copy_from_slice(&table[label as usize * width..][..width]);
    }
}

/// `dtable[labels_b] += dcond_b`, in the order of the batch; the labels have been checked.
pub(crate) fn backward<T: Element>(width: usize, labels: &[u32], dcond: &[T], dtable: &mut [T]) {
    if width == 0 {
        return;
    }
    for (&label, dcond) in labels.iter().zip(dcond.chunks_exact(width)) {
        for (sum, &dcond) in dtable[label as usize * width..][..width].iter_mut().zip(dcond) {
            *sum += dcond;
        }
    }
}
