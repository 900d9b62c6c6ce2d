//! `make-glyphs`: the dataset that makes itself; see [`lgm_data::glyphs`].

use std::process::ExitCode;

use lgm_data::glyphs;

use crate::args::MakeGlyphsArgs;

/// Samples of each digit on the sheet.
const SHEET_COLUMNS: usize = 24;

/// Runs the command.
///
/// # Errors
/// When the files cannot be written.
pub fn run(args: &MakeGlyphsArgs) -> anyhow::Result<ExitCode> {
    let files = glyphs::generate(&args.out, args.train, args.test, args.seed)?;
    println!("{} training images: {}", args.train, files.train_list.display());
    println!("{} test images: {}", args.test, files.test_list.display());
    if let Some(sheet) = &args.sheet {
        glyphs::contact_sheet(sheet, SHEET_COLUMNS, args.seed)?;
        println!("samples: {}", sheet.display());
    }
    Ok(ExitCode::SUCCESS)
}
