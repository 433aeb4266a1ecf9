//! The one binary of a node. The name it is called by chooses the role; see [`role`].

#![forbid(unsafe_code)]

mod role;

use std::env;
use std::process::ExitCode;

use orlop_rt::Exit;

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().collect();
    match role::choose(&args) {
        role::Choice::Run(role, args) => (role.run)(args),
        role::Choice::List => {
            role::ROLES.iter().for_each(|role| println!("{}", role.name));
            Exit::Ok.into()
        }
        role::Choice::Version => {
            println!("orlop {}", orlop_rt::version::TAG);
            Exit::Ok.into()
        }
        role::Choice::Help => {
            print!("{}", role::table());
            Exit::Ok.into()
        }
        role::Choice::Unknown(name) => {
            if let Some(name) = name {
                eprintln!("orlop: {name:?} is not a role");
            }
            eprint!("{}", role::table());
            Exit::Usage.into()
        }
    }
}
