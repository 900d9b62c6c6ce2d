//! A chart's frame: headline, axes with their names and numbers, and the grid.

use std::ops::Range;

use lgm_net::six_digits;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::{Area, Drawn, px, shortened, text};

/// An area with axes, to draw series on.
pub type Chart<'a, B> = ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const MARGIN: u32 = 14;
/// Room for the numbers at an axis and its name.
const LABELS: u32 = 64;
const TITLE: u32 = 24;

/// What a chart's frame shows.
#[derive(Clone, Debug)]
pub struct Axes<'a> {
    /// The headline.
    pub title: &'a str,
    /// The names of the axes across and upward.
    pub names: [&'a str; 2],
    /// The values across.
    pub x: Range<f64>,
    /// The values upward.
    pub y: Range<f64>,
}

impl Axes<'_> {
    /// Draws the frame into an area.
    ///
    /// # Errors
    /// Whatever the backend refuses.
    pub fn draw<'b, B: DrawingBackend>(&self, area: &'b Area<B>) -> Drawn<Chart<'b, B>, B> {
        let width = area.dim_in_pixel().0 / px(1);
        let mut chart = ChartBuilder::on(area)
            .margin(px(MARGIN))
            .caption(shortened(self.title, TITLE, width.saturating_sub(2 * MARGIN)), text(TITLE))
            .x_label_area_size(px(LABELS))
            .y_label_area_size(px(LABELS))
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        let number = |value: &f64| six_digits(*value);
        chart
            .configure_mesh()
            .bold_line_style(BLACK.mix(0.1))
            .light_line_style(TRANSPARENT)
            .x_desc(self.names[0])
            .y_desc(self.names[1])
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .label_style(text(16))
            .axis_desc_style(text(18))
            .draw()?;
        Ok(chart)
    }
}

/// Width over height of what lies within the axes of an area of so many pixels.
pub fn aspect((width, height): (u32, u32)) -> f64 {
    let across = width.saturating_sub(LABELS + 2 * MARGIN).max(1);
    let upward = height.saturating_sub(2 * TITLE + LABELS + 2 * MARGIN).max(1);
    f64::from(across) / f64::from(upward)
}
