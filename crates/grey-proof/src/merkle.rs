//! Merkle trees as in RFC 6962, section 2.1: leaves and nodes are hashed with different prefixes, so that neither can
//! stand for the other.

use sha2::{Digest as _, Sha256};

use crate::digest::{Digest, hmac};

/// The hash of a leaf.
pub fn leaf_hash(data: &[u8]) -> Digest {
    leaf_hash_parts(&[data])
}

fn leaf_hash_parts(parts: &[&[u8]]) -> Digest {
    let mut hash = Sha256::new();
    hash.update([0]);
    parts.iter().for_each(|part| hash.update(part));
    Digest(hash.finalize().into())
}

/// The hash of an interior node.
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    let mut hash = Sha256::new();
    hash.update([1]);
    hash.update(left.0);
    hash.update(right.0);
    Digest(hash.finalize().into())
}

/// The largest power of two below `size`, for a size of at least two.
fn split(size: usize) -> usize {
    size.next_power_of_two() >> 1
}

/// The root over leaf hashes; over none it is the digest of nothing.
pub fn merkle_root(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => Digest::of(&[]),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(&merkle_root(left), &merkle_root(right))
        }
    }
}

/// The path that proves leaf `index`, from the leaf upwards; `None` when there is no such leaf.
pub fn inclusion_path(leaves: &[Digest], index: usize) -> Option<Vec<Digest>> {
    if index >= leaves.len() {
        return None;
    }
    let (mut part, mut index, mut path) = (leaves, index, Vec::new());
    while part.len() > 1 {
        let (left, right) = part.split_at(split(part.len()));
        if index < left.len() {
            path.push(merkle_root(right));
            part = left;
        } else {
            path.push(merkle_root(left));
            index -= left.len();
            part = right;
        }
    }
    path.reverse();
    Some(path)
}

/// Whether `path` proves that `leaf` is leaf `index` of a tree of `size` leaves with this root (RFC 9162, 2.1.3.2).
pub fn verify_inclusion(leaf: &Digest, index: u64, size: u64, path: &[Digest], root: &Digest) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// The leaf of a statement in its report. The salt keeps a neighbour from guessing what the leaf states.
pub fn statement_leaf(salt: &[u8; 32], statement: &[u8]) -> Digest {
    leaf_hash_parts(&[salt, statement])
}

/// The salt of one leaf, so that showing it tells nothing of the others' salts.
pub fn leaf_salt(report_salt: &[u8; 32], index: u32) -> [u8; 32] {
    hmac(report_salt, &[b"grey/leaf-salt/v1", &index.to_le_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(count: usize) -> Vec<Digest> {
        (0..count).map(|number| leaf_hash(&number.to_le_bytes())).collect()
    }

    #[test]
    fn the_empty_tree_and_the_empty_leaf_hash_as_rfc_6962_says() {
        assert_eq!(
            merkle_root(&[]).to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            leaf_hash(b"").to_string(),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
    }

    proptest! {
        #[test]
        fn a_path_proves_its_own_leaf_at_its_own_place_only(size in 1usize..80, at in 0usize..80, other in 0usize..80) {
            let (at, other) = (at % size, other % size);
            let leaves = leaves(size);
            let root = merkle_root(&leaves);
            let path = inclusion_path(&leaves, at).unwrap();
            prop_assert!(verify_inclusion(&leaves[at], at as u64, size as u64, &path, &root));
            if other != at {
                prop_assert!(!verify_inclusion(&leaves[other], at as u64, size as u64, &path, &root));
                prop_assert!(!verify_inclusion(&leaves[at], other as u64, size as u64, &path, &root));
            }
            prop_assert!(!verify_inclusion(&leaves[at], size as u64, size as u64, &path, &root));
            let mut longer = path.clone();
            longer.push(Digest::ZERO);
            prop_assert!(!verify_inclusion(&leaves[at], at as u64, size as u64, &longer, &root));
            if !path.is_empty() {
                prop_assert!(!verify_inclusion(&leaves[at], at as u64, size as u64, &path[1..], &root));
            }
        }
    }
}
