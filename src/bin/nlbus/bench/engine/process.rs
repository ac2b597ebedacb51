//! A broker as a process: its start, what it uses, its end.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps this thread, and what it starts from now on, on one CPU.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        bail!("there is no CPU {cpu}");
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// Seconds of CPU time, in user space and in the kernel; the system counts in hundredths.
    pub(crate) cpu_seconds: f64,
    /// Resident memory now.
    pub(crate) resident_bytes: u64,
    /// The most it was.
    pub(crate) peak_bytes: u64,
}

/// A process that was started to be measured. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts it, with `input` as its standard input.
    pub(crate) fn start(mut command: Command, input: &str) -> anyhow::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
        let child = command.stdin(stdin).stdout(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("cannot start {program}"))?;
        let mut process = Self { child };
        if let Some(mut stdin) = process.child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        Ok(process)
    }

    /// Waits for the line of its standard output that begins with `start`: the rest of it.
    pub(crate) fn wait_for(&mut self, start: &str) -> anyhow::Result<String> {
        let out = self.child.stdout.take().ok_or_else(|| anyhow!("its output is taken"))?;
        for line in BufReader::new(out).lines() {
            if let Some(rest) = line?.strip_prefix(start) {
                return Ok(rest.to_owned());
            }
        }
        bail!("the broker ended before it was ready")
    }

    /// Its process id, for as long as this is not dropped.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        usage_of(self.child.id())
    }
}

fn usage_of(pid: u32) -> anyhow::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    usage(&stat, &status).ok_or_else(|| anyhow!("/proc/{pid} has an unknown form"))
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// proc(5): fields 14 and 15 of `stat`, VmRSS and VmHWM of `status`.
fn usage(stat: &str, status: &str) -> Option<Usage> {
    // the name in parentheses may have anything in it
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second();
    let kibibytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    Some(Usage {
        cpu_seconds: (user + system) as f64 / ticks as f64,
        resident_bytes: kibibytes("VmRSS")? * 1024,
        peak_bytes: kibibytes("VmHWM")? * 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 100 200 300";
        let status = "Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let usage = usage(stat, status).unwrap();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(usage.cpu_seconds, 200.0 / ticks);
        assert_eq!((usage.resident_bytes, usage.peak_bytes), (1 << 20, 2 << 20));
    }

    #[test]
    fn the_usage_of_a_process_that_runs_can_be_read() {
        let usage = usage_of(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 0 && usage.peak_bytes >= usage.resident_bytes);
    }
}
