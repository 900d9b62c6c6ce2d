//! `make-glyphs`: the dataset that makes itself; see [`lgm_data::glyphs`].

use std::process::ExitCode;

use lgm_data::glyphs;

use crate::args::MakeGlyphsArgs;
use crate::output;

/// Samples of each digit on the sheet.
const SHEET_COLUMNS: usize = 24;

/// Runs the command.
///
/// # Errors
/// When the files cannot be written.
pub fn run(args: &MakeGlyphsArgs) -> anyhow::Result<ExitCode> {
    let files = glyphs::generate(&args.out, args.train, args.test, args.seed)?;
    let mut text = format!("{} training images: {}\n", args.train, files.train_list.display());
    text += &format!("{} test images: {}\n", args.test, files.test_list.display());
    if let Some(sheet) = &args.sheet {
        glyphs::contact_sheet(sheet, SHEET_COLUMNS, args.seed)?;
        text += &format!("samples: {}\n", sheet.display());
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
