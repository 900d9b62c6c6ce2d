//! What the assembler reports of each kernel, read from the compiler's log.

/// What one kernel uses on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelUse {
    /// The kernel.
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// Bytes of local memory of a thread, spills included.
    pub stack: u32,
    /// Bytes of registers written to local memory for want of registers.
    pub spill_stores: u32,
    /// Bytes of registers read back.
    pub spill_loads: u32,
}

impl KernelUse {
    /// Bytes of registers that go to local memory and back.
    pub fn spills(&self) -> u32 {
        self.spill_stores + self.spill_loads
    }
}

/// The kernels that a log made with [`super::Nvrtc::VERBOSE`] lists, in its order.
pub fn kernels(log: &str) -> Vec<KernelUse> {
    let mut kernels: Vec<KernelUse> = Vec::new();
    for line in log.lines().filter(|line| line.starts_with("ptxas")) {
        if line.contains("Compiling entry function") {
            let name = line.split('\'').nth(1).unwrap_or_default().to_string();
            kernels.push(KernelUse { name, ..KernelUse::default() });
        } else if let Some(kernel) = kernels.last_mut() {
            let parts: Vec<&str> = line.split_once("    ").map_or(line, |(_, rest)| rest).split(',').collect();
            for part in parts {
                let part = part.trim().trim_start_matches(|c: char| !c.is_ascii_digit() && c != 'U');
                let number = || part.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0);
                match part {
                    _ if part.ends_with("bytes stack frame") => kernel.stack = number(),
                    _ if part.ends_with("bytes spill stores") => kernel.spill_stores = number(),
                    _ if part.ends_with("bytes spill loads") => kernel.spill_loads = number(),
                    _ if part.starts_with("Used") && part.ends_with("registers") => kernel.registers = number(),
                    _ if part.ends_with("bytes smem") => kernel.shared = number(),
                    _ => {}
                }
            }
        }
    }
    kernels
}

/// The log without the assembler's facts: warnings and remarks, empty when there are none.
pub fn remarks(log: &str) -> String {
    let fact =
        |line: &&str| line.trim().is_empty() || line.starts_with("ptxas info") || line.starts_with("ptxas         .");
    log.lines().filter(|line| !fact(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
ptxas         .     800 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 250 registers, used 0 barriers, 800 bytes cumulative stack size
ptxas info    : Compile time = 325.528 ms
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 1024 bytes smem, 372 bytes cmem[0]
";

    #[test]
    fn facts_are_read() {
        let [b, a] = &kernels(LOG)[..] else { panic!("{:?}", kernels(LOG)) };
        let expected =
            KernelUse { name: "b".into(), registers: 250, shared: 0, stack: 800, spill_stores: 12, spill_loads: 16 };
        assert_eq!((b, b.spills()), (&expected, 28));
        assert_eq!((a.name.as_str(), a.registers, a.shared, a.spills()), ("a", 10, 1024, 0));
    }

    #[test]
    fn all_else_is_a_remark() {
        assert_eq!(remarks(LOG), "");
        assert_eq!(remarks(&format!("k.cu(1): warning #177-D: unused\n\n{LOG}")), "k.cu(1): warning #177-D: unused");
        assert_eq!(remarks("ptxas warning : slow\n"), "ptxas warning : slow");
    }
}
