//! Walking through a file's groups, which links may make into circles.

use hdf5_metno::{Group, LocationInfo, LocationType};
use lgm_core::Result;

use crate::handle::H5File;
use crate::{header, reason};

/// Most links that are followed in one walk.
const LINKS: usize = 100_000;
/// Most groups inside each other.
const DEPTH: usize = 100;

/// A group of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct H5Group {
    /// Its path below the group that was asked for; empty for that one itself.
    pub name: String,
    /// The names of its members that are no groups, in alphabetical order.
    pub datasets: Vec<String>,
}

struct Walk<'a> {
    file: &'a H5File,
    links: usize,
    /// The groups around the one at hand.
    around: Vec<LocationInfo>,
    found: Vec<H5Group>,
}

/// The groups in `of`, itself first, then members in alphabetical order, each before what is in it: those that hold no group
/// or a dataset too. A group that contains itself is left out there.
pub(crate) fn groups(file: &H5File, of: &Group) -> Result<Vec<H5Group>> {
    let mut walk = Walk { file, links: 0, around: Vec::new(), found: Vec::new() };
    walk.enter(String::new(), of)?;
    Ok(walk.found)
}

impl Walk<'_> {
    fn enter(&mut self, name: String, group: &Group) -> Result<()> {
        let fail = |e: hdf5_metno::Error| self.file.fail(format!("the group '{name}' cannot be read: {}", reason(&e)));
        let here = group.loc_info().map_err(fail)?;
        header::check_group(self.file, group, &name)?;
        if self.around.iter().any(|a| (a.fileno, &a.token) == (here.fileno, &here.token)) {
            return Ok(());
        }
        if self.around.len() == DEPTH {
            return Err(self.file.fail(format!("more than {DEPTH} groups are nested, at '{name}'")));
        }
        let room = LINKS.saturating_sub(self.links);
        let mut members = Vec::new();
        let visit = |member: &str, link: hdf5_metno::LinkInfo| {
            members.push((member.to_string(), link.link_type));
            // Ended by a value: one link more than there is room for.
            Ok((members.len() > room).then_some(()))
        };
        let (by_name, rising) = (hdf5_metno::IndexType::Name, hdf5_metno::IterationOrder::Increasing);
        let beyond = group.find_link(by_name, rising, visit).map_err(fail)?;
        if beyond.is_some() {
            return Err(self.file.fail(format!("holds more than {LINKS} groups and datasets")));
        }
        self.links = self.links.saturating_add(members.len());
        let (mut datasets, mut inner) = (Vec::new(), Vec::new());
        for (member, link) in members {
            // What an external link leads to belongs to another file.
            let inside = link != hdf5_metno::LinkType::External;
            let is_group = inside && matches!(group.loc_type_by_name(&member), Ok(LocationType::Group));
            if is_group { inner.push(member) } else { datasets.push(member) }
        }
        if !datasets.is_empty() || (inner.is_empty() && !name.is_empty()) {
            self.found.push(H5Group { name: name.clone(), datasets });
        }
        self.around.push(here);
        for member in inner {
            let path = if name.is_empty() { member.clone() } else { format!("{name}/{member}") };
            let below = group.group(&member);
            let below =
                below.map_err(|e| self.file.fail(format!("the group '{path}' cannot be read: {}", reason(&e))))?;
            self.enter(path, &below)?;
        }
        self.around.pop();
        Ok(())
    }
}
