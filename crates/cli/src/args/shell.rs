//! Flags of the commands that tell others of this program: shells and `man`.

use clap::{Args, ValueEnum};

/// Flags of `completions`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  lgm-caffe completions bash > ~/.local/share/bash-completion/completions/lgm-caffe
  lgm-caffe completions zsh > ~/.zfunc/_lgm-caffe        # a folder of fpath
  lgm-caffe completions fish > ~/.config/fish/completions/lgm-caffe.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: ShellFlag,
}

/// A shell that completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum ShellFlag {
    Bash,
    Zsh,
    Fish,
}

/// Flags of `man`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  lgm-caffe man > /usr/local/share/man/man1/lgm-caffe.1
  lgm-caffe man train | man -l -")]
pub struct ManArgs {
    /// The command that the page is about; the program unless given
    pub command: Option<String>,
}
