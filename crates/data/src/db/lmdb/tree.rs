//! The B+ trees that pages make, walked from leaf to leaf.

use lgm_core::Result;

use super::page::{Header, Pages, Tree, TreePage, Value, word64};

/// Fails for a file that lacks pages its header counts. The last pages may be missing if they are all in the tree of
/// free pages.
pub(super) fn check_length(pages: &Pages, header: &Header) -> Result<()> {
    check_entries(pages, header)?;
    let missing = header.last.saturating_add(1).saturating_sub(pages.count);
    if missing == 0 {
        return Ok(());
    }
    let cut = || pages.cut(&format!("its header counts pages up to {}", header.last));
    let trees = [header.free, header.records].map(|tree| tree.pages);
    let used = trees.as_flattened().iter().fold(2, |sum: u64, &n| sum.saturating_add(n));
    if used > pages.count {
        return Err(cut());
    }
    let mut free: u64 = 0;
    if header.free.root.is_some() && header.free.entries > 0 {
        let mut cursor = Cursor::first(pages, header.free)?;
        for entry in 0..header.free.entries {
            if entry > 0 {
                cursor.skip(pages, 1)?;
            }
            let ((_, value), mut list) = (cursor.record(pages)?, Vec::new());
            lgm_core::memory::reserve(&mut list, value.len(), "the list of a database's free pages")?;
            value.append_to(pages, &mut list)?;
            // The number of pages, then the pages.
            let listed = list.chunks_exact(8).skip(1).map(|page| word64(page, 0));
            let listed = listed.filter(|page| (pages.count..=header.last).contains(page)).count() as u64;
            free = listed.saturating_add(free);
        }
    }
    if free < missing { Err(cut()) } else { Ok(()) }
}

/// Fails for a count of records that the file has no room for: a walk of that length would have no end.
fn check_entries(pages: &Pages, header: &Header) -> Result<()> {
    for tree in [header.free, header.records] {
        // A node takes ten bytes at least.
        let most = pages.count.saturating_mul(pages.size as u64 / 10);
        if tree.entries > most {
            return Err(pages.damaged(0, &format!("counts {} records, more than the file can hold", tree.entries)));
        }
    }
    Ok(())
}

/// A place in a tree: the pages from the root down to a leaf, with a node of each.
pub(super) struct Cursor {
    tree: Tree,
    levels: Vec<(TreePage, usize)>,
    /// Pages to be used again.
    spare: Vec<TreePage>,
}

impl Cursor {
    /// At the first value of a tree that has some.
    pub fn first(pages: &Pages, tree: Tree) -> Result<Cursor> {
        let mut cursor = Cursor { tree, levels: Vec::new(), spare: Vec::new() };
        let Some(root) = tree.root else { return Err(pages.damaged(0, "gives a tree entries but no root")) };
        cursor.descend(pages, root)?;
        Ok(cursor)
    }

    fn descend(&mut self, pages: &Pages, mut number: u64) -> Result<()> {
        let depth = usize::from(self.tree.depth);
        loop {
            let mut page = self.spare.pop().unwrap_or_default();
            page.load(pages, number)?;
            // Equal depth everywhere: a circle of pages has an end here.
            if page.is_leaf != (self.levels.len().saturating_add(1) == depth) {
                return Err(pages.damaged(number, &format!("is not where a tree of depth {depth} has it")));
            }
            self.levels.push((page, 0));
            let Some((page, _)) = self.levels.last().filter(|(page, _)| !page.is_leaf) else { return Ok(()) };
            number = page.child(pages, 0)?;
        }
    }

    /// The key and the value at hand.
    pub fn record<'a>(&'a self, pages: &Pages) -> Result<(&'a [u8], Value<'a>)> {
        match self.levels.last() {
            Some((leaf, node)) => leaf.record(pages, *node),
            None => Err(ended(pages)),
        }
    }

    /// The leaf and the node of it at hand.
    pub fn place(&self) -> (u64, usize) {
        self.levels.last().map_or((0, 0), |(leaf, node)| (leaf.number, *node))
    }

    /// Moves on by so many values, all of which must be there.
    pub fn skip(&mut self, pages: &Pages, mut count: u64) -> Result<()> {
        while count > 0 {
            let Some((leaf, node)) = self.levels.last_mut() else { return Err(ended(pages)) };
            let left = leaf.nodes.saturating_sub(1).saturating_sub(*node) as u64;
            if count <= left {
                *node = node.saturating_add(count as usize);
                return Ok(());
            }
            count = count.saturating_sub(left).saturating_sub(1);
            self.next_leaf(pages)?;
        }
        Ok(())
    }

    fn next_leaf(&mut self, pages: &Pages) -> Result<()> {
        loop {
            self.spare.extend(self.levels.pop().map(|(page, _)| page));
            let Some((page, node)) = self.levels.last_mut() else { return Err(ended(pages)) };
            *node = node.saturating_add(1);
            if *node < page.nodes {
                let child = page.child(pages, *node)?;
                return self.descend(pages, child);
            }
        }
    }
}

fn ended(pages: &Pages) -> lgm_core::Error {
    pages.damaged(0, "counts more records than there are")
}
