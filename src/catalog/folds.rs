//! Folds under way: a layer without a name, and the one child it is being joined with.

use rusqlite::params;

use super::row::{Fields, stored, worded};
use super::{CatalogError, Kind, Layer, LayerState, ReadTx, WriteTx};
use crate::ids::LayerId;

worded! {
    /// Which way the sectors of a fold go.
    FoldWay {
        /// The child takes what it lacks from its parent, which then goes.
        Up = "up",
        /// The parent takes the child's sectors and its place; the child goes.
        Down = "down",
    }
}

/// A fold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// The layer that lost its name.
    pub parent: LayerId,
    /// The only one on it.
    pub child: LayerId,
    /// Which way it goes.
    pub way: FoldWay,
    /// The first chunk not moved for good.
    pub next_chunk: u64,
    /// How far the layer that stays was then (generation, confirmed seq: u64 each), and a MAC by its key over that and all before;
    /// without it nothing counts as moved.
    pub mac: Option<[u8; 32]>,
    /// Bytes moved so far.
    pub moved_bytes: u64,
    /// All is moved and the layers' rows say so; what is left is to take the emptied one away.
    pub is_moved: bool,
}

impl Fold {
    /// The layer that stays.
    pub fn kept(&self) -> LayerId {
        match self.way {
            FoldWay::Up => self.child,
            FoldWay::Down => self.parent,
        }
    }

    /// The layer that goes.
    pub fn gone(&self) -> LayerId {
        match self.way {
            FoldWay::Up => self.parent,
            FoldWay::Down => self.child,
        }
    }
}

fn fold(f: &Fields) -> Result<Fold, CatalogError> {
    let mac = f.opt_blob("mac", 32)?.and_then(|bytes| bytes.try_into().ok());
    Ok(Fold {
        parent: f.parsed("parent", "a layer's id")?,
        child: f.parsed("child", "a layer's id")?,
        way: f.parsed("way", "a way")?,
        next_chunk: f.unsigned("next_chunk")?,
        mac,
        moved_bytes: f.unsigned("moved_bytes")?,
        is_moved: f.flag("is_moved")?,
    })
}

const FOLD: &str =
    "SELECT parent AS id, parent, child, way, next_chunk, mac, moved_bytes, is_moved FROM folds";

impl ReadTx<'_> {
    /// Folds under way.
    pub fn folds(&self) -> Result<Vec<Fold>, CatalogError> {
        self.list(&format!("{FOLD} ORDER BY parent"), [], fold)
    }

    /// The fold that takes a layer's sectors away.
    pub fn find_fold_of_gone(&self, gone: LayerId) -> Result<Option<Fold>, CatalogError> {
        let id = gone.to_string();
        let sql = format!("{FOLD} WHERE parent = ?1 AND way = 'up' OR child = ?1 AND way = 'down'");
        self.first(&sql, [id], fold)
    }

    /// Sealed layers that nothing names and that have one child, with that child, oldest first.
    pub fn foldable_layers(&self) -> Result<Vec<(Layer, Layer)>, CatalogError> {
        let ids = self.list(
            "SELECT l.id AS id FROM layers l
             WHERE l.state = 'sealed' AND l.sealed_generation IS NOT NULL
               AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = l.id)
               AND NOT EXISTS (SELECT 1 FROM volumes v WHERE v.active = l.id OR v.next = l.id)
               AND NOT EXISTS (SELECT 1 FROM folds f WHERE l.id IN (f.parent, f.child))
               AND (SELECT count(*) FROM layers c WHERE c.parent = l.id) = 1
             ORDER BY l.created_at, l.id",
            [],
            |f| f.parsed::<LayerId>("id", "a layer's id"),
        )?;
        let mut found = Vec::new();
        for id in ids {
            let mut children = self.children_of_layer(id)?;
            if let (Some(child), true) = (children.pop(), children.is_empty()) {
                let is_whole = match child.state {
                    LayerState::Active => true,
                    LayerState::Sealed => child.sealed_generation.is_some(),
                    _ => false,
                };
                if is_whole && self.find_fold_touching(child.id)?.is_none() {
                    found.push((self.layer(id)?, child));
                }
            }
        }
        Ok(found)
    }

    /// Whether a fold under way takes this layer away, or puts it in its child's place.
    pub fn is_parent_in_fold(&self, layer: LayerId) -> Result<bool, CatalogError> {
        let sql = format!("{FOLD} WHERE parent = ?1 AND NOT is_moved");
        Ok(self.first(&sql, [layer.to_string()], fold)?.is_some())
    }

    fn find_fold_touching(&self, layer: LayerId) -> Result<Option<Fold>, CatalogError> {
        self.first(&format!("{FOLD} WHERE ?1 IN (parent, child)"), [layer.to_string()], fold)
    }
}

impl WriteTx<'_> {
    /// Adds a fold.
    pub fn insert_fold(&self, row: &Fold) -> Result<(), CatalogError> {
        self.insert(
            Kind::Layer,
            &row.parent.to_string(),
            "INSERT INTO folds (parent, child, way, next_chunk, mac, moved_bytes, is_moved)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                row.parent.to_string(),
                row.child.to_string(),
                row.way.as_str(),
                stored(row.next_chunk)?,
                row.mac.map(|mac| mac.to_vec()),
                stored(row.moved_bytes)?,
                row.is_moved
            ],
        )
    }

    /// Records how far a fold is; whether it is still there (its layers may have been removed).
    pub fn set_fold_progress(&self, fold: &Fold) -> Result<bool, CatalogError> {
        let changed = self.execute(
            "UPDATE folds SET next_chunk = ?2, mac = ?3, moved_bytes = ?4, is_moved = ?5 WHERE parent = ?1",
            params![
                fold.parent.to_string(),
                stored(fold.next_chunk)?,
                fold.mac.map(|mac| mac.to_vec()),
                stored(fold.moved_bytes)?,
                fold.is_moved
            ],
        )?;
        Ok(changed == 1)
    }

    /// Takes a fold away.
    pub fn delete_fold(&self, parent: LayerId) -> Result<(), CatalogError> {
        self.execute("DELETE FROM folds WHERE parent = ?1", [parent.to_string()]).map(drop)
    }

    /// `to` takes the place of `from`: its snapshots, its children, its moment, its size.
    pub fn give_layers_place(&self, from: &Layer, to: LayerId) -> Result<(), CatalogError> {
        let ids = || [from.id.to_string(), to.to_string()];
        self.execute("UPDATE snapshots SET layer = ?2 WHERE layer = ?1", ids())?;
        self.execute("UPDATE layers SET parent = ?2 WHERE parent = ?1", ids())?;
        self.set_layer_points(to, &self.layer_points(from.id)?)?;
        let point = from.point.map(|p| p.to_string());
        self.update(
            Kind::Layer,
            to,
            "UPDATE layers SET point = ?2, size_bytes = ?3 WHERE id = ?1",
            params![to.to_string(), point, stored(from.size_bytes)?],
        )
    }
}
