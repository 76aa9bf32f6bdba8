//! The resources of a multiprocessor that a compiled kernel needs, read from the compiler's log.

/// Registers, memory and spills of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The kernel.
    pub name: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Bytes that a thread writes to memory for lack of registers.
    pub spill_stores: u32,
    /// Bytes that a thread reads back.
    pub spill_loads: u32,
    /// Bytes of stack of a thread; arrays that are indexed at run time end up there.
    pub stack: u32,
}

/// Reads the kernels from a log that `--ptxas-options=-v` produces; they are sorted by name.
pub fn of_log(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(name) = between(line, "Compiling entry function '", "'") {
            found.push(Resources { name: name.to_owned(), ..Resources::default() });
        }
        let Some(kernel) = found.last_mut() else { continue };
        let mut read = |unit: &str, to: fn(&mut Resources) -> &mut u32| {
            if let Some(number) = before(line, unit) {
                *to(kernel) = number;
            }
        };
        read(" bytes stack frame", |k| &mut k.stack);
        read(" bytes spill stores", |k| &mut k.spill_stores);
        read(" bytes spill loads", |k| &mut k.spill_loads);
        read(" registers", |k| &mut k.registers);
        read(" bytes smem", |k| &mut k.shared);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn between<'a>(line: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = &line[line.find(start)? + start.len()..];
    Some(&rest[..rest.find(end)?])
}

/// The number right before `unit`.
fn before(line: &str, unit: &str) -> Option<u32> {
    let head = &line[..line.find(unit)?];
    let digits = head.len() - head.bytes().rev().take_while(u8::is_ascii_digit).count();
    head[digits..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'second' for 'sm_80'\n\
            ptxas info    : Function properties for second\n\
            \x20   16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 164 registers, used 1 barriers, 27648 bytes smem, 392 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'add' for 'sm_80'\n\
            ptxas info    : Function properties for add\n\
            \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 10 registers, 376 bytes cmem[0]\n";
        let add = Resources { name: "add".into(), registers: 10, ..Resources::default() };
        let second = Resources {
            name: "second".into(),
            registers: 164,
            shared: 27648,
            spill_stores: 8,
            spill_loads: 12,
            stack: 16,
        };
        assert_eq!(of_log(log), [add, second]);
        assert_eq!(of_log("nothing of the kind"), []);
    }
}
