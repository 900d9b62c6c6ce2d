//! `make-glyphs`: the dataset that makes itself; see [`lgm_data::glyphs`].

use std::process::ExitCode;

use lgm_data::glyphs::{self, Signs};

use crate::args::MakeGlyphsArgs;
use crate::output;

/// Samples of each class on the sheet.
const SHEET_COLUMNS: usize = 24;

/// Runs the command.
///
/// # Errors
/// When the files cannot be written.
pub fn run(args: &MakeGlyphsArgs) -> anyhow::Result<ExitCode> {
    let signs = if args.letters { Signs::Letters } else { Signs::Digits };
    let files = glyphs::generate(&args.out, signs, args.train, args.test, args.seed)?;
    let mut text = format!("{} training images: {}\n", args.train, files.train_list.display());
    text += &format!("{} test images: {}\n", args.test, files.test_list.display());
    if let Some(sheet) = &args.sheet {
        glyphs::contact_sheet(sheet, signs, SHEET_COLUMNS, args.seed)?;
        text += &format!("samples: {}\n", sheet.display());
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
