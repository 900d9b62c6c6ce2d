//! `completions`: what a shell needs to complete commands and flags, with one dash or two.
//!
//! `clap_complete` writes scripts for flags with two dashes. Where Caffe's one dash has a place in a shell's language it is
//! put in beside: in bash's lists of words, as zsh's own entries, as fish's old-style options.

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Cli, CompletionsArgs, ShellFlag};
use crate::output;

/// Prints a shell's script.
///
/// # Errors
/// When standard output takes no more.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode> {
    output::print(&script(args.shell))?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: ShellFlag) -> String {
    let (generator, one_dash): (Shell, fn(&str) -> String) = match shell {
        ShellFlag::Bash => (Shell::Bash, bash),
        ShellFlag::Zsh => (Shell::Zsh, zsh),
        ShellFlag::Fish => (Shell::Fish, fish),
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Cli::command(), "lgm-caffe", &mut script);
    String::from_utf8_lossy(&script).lines().map(|line| one_dash(line) + "\n").collect()
}

/// Flags in a list of words (`opts="--solver --gpu"`) and the cases of what comes after one (`--solver)`).
fn bash(line: &str) -> String {
    let text = line.trim_start();
    let indent = &line[..line.len() - text.len()];
    if let Some(words) = text.strip_prefix("opts=\"").and_then(|text| text.strip_suffix('"')) {
        let both = words.split(' ').map(|word| match word.strip_prefix("--") {
            Some(name) if !name.is_empty() => format!("--{name} -{name}"),
            _ => word.to_string(),
        });
        return format!("{indent}opts=\"{}\"", both.collect::<Vec<_>>().join(" "));
    }
    match text.strip_prefix("--").and_then(|text| text.strip_suffix(')')) {
        Some(name) if !name.contains([' ', '|']) => format!("{indent}--{name}|-{name})"),
        // The script names the program in two ways (clap_complete 4.6.11) and finds no flags of its commands then.
        _ => line.replace("lgm__subcmd__caffe", "lgm__caffe"),
    }
}

/// Entries of `_arguments` (`'--solver=[…]:FILE:_files' \`).
fn zsh(line: &str) -> String {
    let one = ["'--", "'*--"].into_iter().find(|start| line.starts_with(start));
    match one {
        Some(start) => format!("{line}\n{}{}", start.replace("--", "-"), &line[start.len()..]),
        None => line.to_string(),
    }
}

/// Long options (`-l solver`).
fn fish(line: &str) -> String {
    let Some((before, after)) = line.split_once(" -l ") else { return line.to_string() };
    let name = after.split(' ').next().unwrap_or(after);
    format!("{before} -l {name} -o {name}{}", &after[name.len()..])
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn flags_are_completed_with_one_dash_and_with_two() {
        for (shell, parts) in [
            (ShellFlag::Bash, ["--solver -solver", "--solver|-solver)", "draw_net"]),
            (ShellFlag::Zsh, ["\n'--solver=[", "\n'-solver=[", "draw_net"]),
            (ShellFlag::Fish, ["-l solver -o solver ", "__fish_lgm_caffe_using_subcommand train", "draw_net"]),
        ] {
            let script = script(shell);
            parts.iter().for_each(|part| assert!(script.contains(part), "{shell:?}: {part}"));
        }
    }

    #[test]
    fn bash_completes_with_the_script() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("completions");
        std::fs::write(&file, script(ShellFlag::Bash)).unwrap();
        let complete = |words: &str, count: usize| {
            let text = format!(
                "source {}; COMP_WORDS=({words}); COMP_CWORD={count}; _lgm__caffe lgm-caffe \"${{COMP_WORDS[{count}]}}\" \
                 \"${{COMP_WORDS[{}]}}\"; echo \"${{COMPREPLY[@]}}\"",
                file.display(),
                count - 1
            );
            let output = Command::new("bash").args(["-c", &text]).output().unwrap();
            assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_string()
        };
        assert_eq!(complete("lgm-caffe draw", 1), "draw_net");
        assert_eq!(complete("lgm-caffe train -solv", 2), "-solver");
        assert_eq!(complete("lgm-caffe train --solv", 2), "--solver");
        assert_eq!(complete("lgm-caffe draw_net -rankdir T", 3), "TB");
    }
}
