//! Containers that wait for others to end: when they start, and when they never will.
//!
//! Must not know how a container is started; that is the site's.

use std::io;

use super::sandbox::State;
use super::{Launcher, enter};
use crate::wire::{Report, Status};

impl Launcher {
    /// A container that others waited for has ended: they start, or never will.
    pub fn go_on(&mut self, uid: &str, well: bool) -> io::Result<()> {
        let Some(sandbox) = self.sandboxes.get_mut(uid) else { return Ok(()) };
        if !well || sandbox.stopping.is_some() {
            return self.abandon(uid);
        }
        let Some(mut rest) = sandbox.rest.take() else { return Ok(()) };
        let first = sandbox.members.len();
        let made = self.site.go_on(&mut rest, &mut sandbox.holdings, &mut sandbox.members, &mut self.zygotes);
        let mut started = vec![];
        for (container, member) in sandbox.members.iter_mut().enumerate().skip(first) {
            let uid = uid.to_owned();
            started.extend(match member.state {
                State::Running { .. } => Some(Report::Started { uid, container }),
                State::Asked { .. } => None,
                State::Ended => {
                    let status = Status::Code(enter::COULD_NOT_START);
                    Some(Report::Exited { uid, container, status, out_of_memory: false })
                }
            });
            if matches!(member.state, State::Ended)
                && let Some(cell) = member.cell.take()
            {
                self.site.release_cell(cell);
            }
        }
        if !rest.containers.is_empty() {
            sandbox.rest = Some(rest);
        }
        self.register(uid, first);
        started.iter().try_for_each(|report| self.report(report))?;
        match made {
            Ok(()) => Ok(()),
            Err(refusal) => {
                self.notice(format!("a container of sandbox {uid} was not started: {refusal:?}"))?;
                self.abandon(uid)
            }
        }
    }

    /// Gives up the containers of a sandbox that have not started: to everybody else they were killed.
    pub fn abandon(&mut self, uid: &str) -> io::Result<()> {
        let Some(sandbox) = self.sandboxes.get_mut(uid) else { return Ok(()) };
        let Some(rest) = sandbox.rest.take() else { return Ok(()) };
        let places = (sandbox.members.len()..).take(rest.containers.len());
        drop(rest);
        places
            .map(|container| {
                let status = Status::Signal(libc::SIGKILL);
                Report::Exited { uid: uid.to_owned(), container, status, out_of_memory: false }
            })
            .try_for_each(|report| self.report(&report))
    }
}
