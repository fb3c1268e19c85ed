//! Cgroups: one per container, below one per slot, in every hierarchy that has a controller we need.
//!
//! Owns those folders. Must not know what runs in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::plan::{Controller, Hierarchy, cgroup_views, hierarchies, memory_kills, settings};
use super::sys;
use crate::provider::Limits;

const PROCS: &str = "cgroup.procs";
const SUBTREE: &str = "cgroup.subtree_control";
/// Where a container's own processes go, so that its root may have children with controllers.
const OUTSIDE: &str = "dhow-outside";
/// A process that forks while it is moved leaves a child behind for the next round.
const MOVE_ROUNDS: usize = 16;

/// The slot's part of every hierarchy.
pub struct Tree {
    hierarchies: Vec<Hierarchy>,
    parent: String,
    /// While it is open, moving a process takes microseconds. Absent where the kernel is too old to be asked.
    favour: Option<OwnedFd>,
}

/// One container's cgroup.
pub struct Cgroup {
    folders: Vec<PathBuf>,
    /// Open `cgroup.procs` files: writing `0` moves the writer.
    pub doors: Vec<OwnedFd>,
}

impl Tree {
    pub fn find(parent: &str) -> io::Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        let unified = |root: &Path| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        Ok(Self { hierarchies: hierarchies(&mountinfo, unified), parent: parent.to_owned(), favour: None })
    }

    /// The controllers that cannot be used, each with the reason; they are left out from now on.
    pub fn prepare(&mut self) -> Vec<(Controller, String)> {
        let mut missing = vec![];
        self.favour = sys::c_string(&self.parent).and_then(|name| sys::favour_cgroup_moves(&name)).ok();
        for hierarchy in &mut self.hierarchies {
            let refused = prepare(hierarchy, &self.parent);
            hierarchy.controllers.retain(|c| !refused.iter().any(|(r, _)| r == c));
            missing.extend(refused);
        }
        self.hierarchies.retain(|h| !h.controllers.is_empty());
        for controller in [Controller::Memory, Controller::Cpu, Controller::Pids] {
            let there = self.hierarchies.iter().any(|h| h.controllers.contains(&controller));
            if !there && !missing.iter().any(|(c, _)| *c == controller) {
                missing.push((controller, "this kernel offers no such cgroup controller".to_owned()));
            }
        }
        missing
    }

    pub fn make(&self, name: &str) -> io::Result<Cgroup> {
        let mut cgroup = Cgroup { folders: vec![], doors: vec![] };
        for hierarchy in &self.hierarchies {
            let folder = hierarchy.root.join(&self.parent).join(name);
            match fs::create_dir(&folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    let _ = cgroup.remove();
                    return Err(e);
                }
                _ => {}
            }
            let procs = OpenOptions::new().write(true).open(folder.join(PROCS))?;
            cgroup.folders.push(folder);
            cgroup.doors.push(procs.into());
        }
        Ok(cgroup)
    }

    /// A cgroup's folders, and where its container sees them.
    pub fn views(&self, cgroup: &Cgroup) -> Vec<(PathBuf, String)> {
        let others = self.hierarchies.iter().any(|hierarchy| !hierarchy.unified);
        let folders = self.hierarchies.iter().zip(&cgroup.folders);
        let seen = folders.flat_map(|(hierarchy, folder)| {
            cgroup_views(hierarchy, others).into_iter().map(|view| (folder.clone(), view))
        });
        seen.collect()
    }

    pub fn limit(&self, cgroup: &Cgroup, limits: &Limits) -> io::Result<()> {
        for (hierarchy, folder) in self.hierarchies.iter().zip(&cgroup.folders) {
            for setting in settings(hierarchy, limits) {
                match write_existing(&folder.join(setting.file), &setting.value) {
                    Err(e) if !(setting.optional && e.kind() == io::ErrorKind::NotFound) => {
                        return Err(io::Error::new(e.kind(), format!("{}={}: {e}", setting.file, setting.value)));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Kills everything below the slot's parent, and removes it. `false` while something is still there.
    pub fn clear(&self) -> bool {
        let mut clear = true;
        for hierarchy in &self.hierarchies {
            let parent = hierarchy.root.join(&self.parent);
            let children = fs::read_dir(&parent).into_iter().flatten().flatten();
            for child in children.filter(|c| c.file_type().is_ok_and(|t| t.is_dir())) {
                kill_all(&child.path());
                clear &= remove(&child.path());
            }
            kill_all(&parent);
            clear &= remove(&parent);
        }
        clear
    }
}

impl Cgroup {
    pub fn kill(&self) {
        // Every process is in all of them; one whose forks outrun the reading is caught in the next round.
        if let Some(folder) = self.folders.first() {
            kill_all(folder);
        }
    }

    /// Opens its doors again, for one more process.
    pub fn open_doors(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |folder: &PathBuf| Ok(OpenOptions::new().write(true).open(folder.join(PROCS))?.into());
        self.folders.iter().map(open).collect()
    }

    /// The processes in it, as the launcher numbers them.
    pub fn processes(&self) -> Vec<i32> {
        let pids = self.folders.first().and_then(|folder| fs::read_to_string(folder.join(PROCS)).ok());
        pids.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    pub fn ran_out_of_memory(&self) -> bool {
        let files = self.folders.iter().flat_map(|f| [f.join("memory.oom_control"), f.join("memory.events")]);
        files.filter_map(|file| fs::read_to_string(file).ok()).any(|text| memory_kills(&text) > 0)
    }

    /// `false` while a process is left in it.
    pub fn remove(&mut self) -> bool {
        self.doors.clear();
        self.folders.retain(|folder| !remove(folder));
        self.folders.is_empty()
    }
}

/// Gives the slot's part of a hierarchy its controllers, and says which it cannot have.
fn prepare(hierarchy: &Hierarchy, parent: &str) -> Vec<(Controller, String)> {
    let folder = hierarchy.root.join(parent);
    let enable = |controller: Controller| {
        fs::create_dir_all(&folder)?;
        if hierarchy.unified {
            let name = match controller {
                Controller::Memory => "+memory",
                Controller::Cpu => "+cpu",
                Controller::Pids => "+pids",
            };
            enable_at_root(&hierarchy.root, name)?;
            write_existing(&folder.join(SUBTREE), name)?;
        }
        Ok(())
    };
    let refused = |c: &Controller| enable(*c).err().map(|e: io::Error| (*c, e.to_string()));
    hierarchy.controllers.iter().filter_map(refused).collect()
}

/// A cgroup v2 that gives its children controllers may hold no process. The machine's own root is exempt. What looks
/// like the root inside a container is not, and there whatever runs beside us, and we, move one level down.
fn enable_at_root(root: &Path, name: &str) -> io::Result<()> {
    match write_existing(&root.join(SUBTREE), name) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            move_down(root)?;
            write_existing(&root.join(SUBTREE), name)
        }
        other => other,
    }
}

fn move_down(root: &Path) -> io::Result<()> {
    let below = root.join(OUTSIDE);
    fs::create_dir_all(&below)?;
    for _ in 0..MOVE_ROUNDS {
        let pids = fs::read_to_string(root.join(PROCS))?;
        if pids.is_empty() {
            break;
        }
        for pid in pids.lines() {
            // One that has ended meanwhile is not there to be moved; one that stays makes the caller fail again.
            let _ = write_existing(&below.join(PROCS), pid);
        }
    }
    Ok(())
}

fn write_existing(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

fn kill_all(folder: &Path) {
    if write_existing(&folder.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let Ok(pids) = fs::read_to_string(folder.join(PROCS)) else { return };
    for pid in pids.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn remove(folder: &Path) -> bool {
    match fs::remove_dir(folder) {
        Ok(()) => true,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

/// Moves this process into the cgroups behind the doors.
pub fn enter(doors: &[OwnedFd]) -> io::Result<()> {
    for door in doors {
        File::from(door.try_clone()?).write_all(b"0")?;
    }
    Ok(())
}
