//! The cluster's log of reports as a growing Merkle tree, of which only the right edge is kept.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::merkle::node_hash;

/// An append-only tree: its size and the roots of the complete subtrees on its right edge, largest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogTree {
    size: u64,
    edge: Vec<Digest>,
}

impl LogTree {
    /// Whether the edge is that of a tree of this size: one subtree for each bit that is set.
    pub fn is_whole(&self) -> bool {
        self.edge.len() == self.size.count_ones() as usize
    }

    /// How many leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root over all leaves; over none it is the digest of nothing.
    pub fn root(&self) -> Digest {
        let mut subtrees = self.edge.iter().rev().copied();
        match subtrees.next() {
            None => Digest::of(&[]),
            Some(smallest) => subtrees.fold(smallest, |right, left| node_hash(&left, &right)),
        }
    }

    /// Appends a leaf hash. Returns the leaf and every interior hash that it completes, lowest first: written one after
    /// another they are all that any later path needs.
    pub fn append(&mut self, leaf: Digest) -> Vec<Digest> {
        let mut completed = vec![leaf];
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.edge.pop() else { break };
            hash = node_hash(&left, &hash);
            completed.push(hash);
        }
        self.edge.push(hash);
        self.size += 1;
        completed
    }
}

/// How many hashes [`LogTree::append`] returned in all for a tree of `size` leaves.
pub fn stored_hash_count(size: u64) -> u64 {
    // Every leaf stores itself; a tree of n leaves completes n − popcount(n) interior nodes.
    size.saturating_mul(2).saturating_sub(u64::from(size.count_ones()))
}

/// Where the hash of the `n`th complete subtree of `2^level` leaves stands among the stored hashes.
pub fn stored_hash_index(level: u32, n: u64) -> u64 {
    // It is completed by the subtree's last leaf, right after the hashes of the levels below it.
    let last_leaf = (n.saturating_add(1) << level) - 1;
    stored_hash_count(last_leaf).saturating_add(u64::from(level))
}

/// The path that proves leaf `index` in the tree of the first `size` leaves, from the leaf upwards. `read` gives a
/// stored hash by its index. `None` when there is no such leaf.
pub fn log_inclusion_path<E>(
    index: u64,
    size: u64,
    mut read: impl FnMut(u64) -> Result<Digest, E>,
) -> Result<Option<Vec<Digest>>, E> {
    if index >= size {
        return Ok(None);
    }
    let (mut low, mut high, mut path) = (0u64, size, Vec::new());
    while high - low > 1 {
        let middle = low + ((high - low).next_power_of_two() >> 1);
        if index < middle {
            path.push(subtree_root(middle, high, &mut read)?);
            high = middle;
        } else {
            path.push(subtree_root(low, middle, &mut read)?);
            low = middle;
        }
    }
    path.reverse();
    Ok(Some(path))
}

/// The root over the first `size` leaves; over none it is the digest of nothing. `read` gives a stored hash by its index.
///
/// # Errors
/// What `read` fails with.
pub fn log_root<E>(size: u64, mut read: impl FnMut(u64) -> Result<Digest, E>) -> Result<Digest, E> {
    if size == 0 { Ok(Digest::of(&[])) } else { subtree_root(0, size, &mut read) }
}

/// The root over leaves `low..high` of one node of the tree: complete subtrees are read, the rest is hashed.
fn subtree_root<E>(
    low: u64,
    high: u64,
    read: &mut impl FnMut(u64) -> Result<Digest, E>,
) -> Result<Digest, E> {
    let mut roots = Vec::new();
    let mut low = low;
    while low < high {
        let level = (high - low).ilog2();
        roots.push(read(stored_hash_index(level, low >> level))?);
        low += 1 << level;
    }
    let mut roots = roots.into_iter().rev();
    let smallest = roots.next().unwrap_or_default();
    Ok(roots.fold(smallest, |right, left| node_hash(&left, &right)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merkle::{inclusion_path, leaf_hash, merkle_root};

    #[test]
    fn the_growing_tree_has_the_roots_and_paths_of_the_plain_one_at_every_size() {
        let mut tree = LogTree::default();
        let (mut leaves, mut stored) = (Vec::new(), Vec::new());
        for size in 0u64..140 {
            assert_eq!(tree.root(), merkle_root(&leaves), "root at size {size}");
            assert_eq!(stored_hash_count(size), stored.len() as u64);
            for index in 0..size {
                let read = |at: u64| stored.get(at as usize).copied().ok_or(at);
                let path = log_inclusion_path(index, size, read).unwrap();
                assert_eq!(path, inclusion_path(&leaves, index as usize), "leaf {index} of {size}");
            }
            for earlier in 0..=size {
                let read = |at: u64| stored.get(at as usize).copied().ok_or(at);
                let root = log_root(earlier, read).unwrap();
                assert_eq!(root, merkle_root(&leaves[..earlier as usize]), "{earlier} of {size}");
            }
            let leaf = leaf_hash(&size.to_le_bytes());
            leaves.push(leaf);
            stored.extend(tree.append(leaf));
        }
    }
}
