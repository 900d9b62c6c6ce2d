//! Legends: a column of entries beside the chart, and as many more columns as it takes.

use plotters::prelude::*;

use super::{Area, Drawn, Series, px, shortened, text, text_width};

/// Entries beyond these are counted, not listed.
const MOST: usize = 600;
const MARGIN: u32 = 14;
const TOP: u32 = 58;
/// The room a sign takes, and the space after it.
const SIGN: u32 = 34;
/// Longer names are cut.
const WIDEST: u32 = 260;

/// A name and its sign.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// What it looks like in the chart.
    pub sign: Sign,
}

/// What a legend shows before a name.
#[derive(Clone, Copy, Debug)]
pub enum Sign {
    /// Points of a series.
    Point(Series),
    /// The line of a series.
    Line(Series),
    /// An area of a colour.
    Patch(RGBColor),
    /// The cross of a class center.
    Center,
    /// Nothing.
    None,
}

/// A legend laid out for a height.
#[derive(Clone, Debug)]
pub struct Legend {
    entries: Vec<Entry>,
    rows: usize,
    /// Pixels from one entry to the next below.
    step: u32,
    /// Pixels from one column to the next.
    column: u32,
}

impl Legend {
    /// Lays entries out beside a chart of a height in pixels.
    pub fn new(mut entries: Vec<Entry>, height: u32) -> Legend {
        if entries.len() > MOST {
            let more = entries.len() + 1 - MOST;
            entries.truncate(MOST - 1);
            entries.push(Entry { name: format!("and {more} more"), sign: Sign::None });
        }
        let room = height.saturating_sub(TOP + MARGIN);
        // One column of the largest letters that fit, then several of the smallest.
        let step = (room / entries.len().max(1) as u32).clamp(16, 26);
        let rows = ((room / step) as usize).max(1);
        let letters = Self::letters(step);
        let widest = entries.iter().map(|entry| text_width(&entry.name, letters)).max().unwrap_or(0);
        Legend { column: SIGN + widest.min(WIDEST) + MARGIN, entries, rows, step }
    }

    fn letters(step: u32) -> u32 {
        (step * 3 / 4).min(18)
    }

    /// Its width in pixels, none where there are no entries.
    pub fn width(&self) -> u32 {
        match self.entries.len().div_ceil(self.rows) as u32 {
            0 => 0,
            columns => columns * self.column + MARGIN,
        }
    }

    /// Draws it into an area of the legend's width.
    ///
    /// # Errors
    /// Whatever the backend refuses.
    pub fn draw<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<(), B> {
        let letters = Self::letters(self.step);
        for (i, entry) in self.entries.iter().enumerate() {
            let (column, row) = ((i / self.rows) as u32, (i % self.rows) as u32);
            let left = px(MARGIN / 2 + column * self.column) as i32;
            let y = px(TOP + row * self.step + self.step / 2) as i32;
            let (middle, end) = (left + px(SIGN - 8) as i32 / 2, left + px(SIGN - 8) as i32);
            match entry.sign {
                Sign::Point(series) => area.draw(&series.point((middle, y), (letters / 2).min(6), 1.0))?,
                Sign::Line(series) => area.draw(&series.line(vec![(left, y), (end, y)]))?,
                Sign::Patch(color) => {
                    let half = px(letters) as i32 / 2;
                    area.draw(&Rectangle::new([(left, y - half), (end, y + half)], color.filled()))?;
                }
                Sign::Center => area.draw(&Cross::new((middle, y), px(6), BLACK.stroke_width(px(3))))?,
                Sign::None => (),
            }
            let name = shortened(&entry.name, letters, WIDEST);
            area.draw(&Text::new(name, (left + px(SIGN) as i32, y), text(letters)))?;
        }
        Ok(())
    }
}
