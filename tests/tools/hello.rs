//! The only program of an image made by tests: answers every request with what it sees of its container, or does what its first
//! argument says.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["fail", ..] => {
            eprintln!("asked to fail");
            std::process::exit(3);
        }
        ["is", file] => std::process::exit(i32::from(!std::path::Path::new(file).exists())),
        ["put", file] => return std::fs::write(file, "x").expect("a file"),
        ["make", file] => {
            std::fs::write(file, "x").expect("a file");
            loop {
                std::thread::park();
            }
        }
        _ => {}
    }
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let listener = TcpListener::bind(("0.0.0.0", variable("PORT").parse().expect("a port"))).expect("a listener");
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        let mut lines = BufReader::new(&connection).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        for _ in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {}
        let place = std::env::current_dir().map(|place| place.display().to_string()).unwrap_or_default();
        let own = std::fs::read_to_string("/etc/own").unwrap_or_default();
        let writes = std::fs::write("/var/made", "x").is_ok();
        let read = std::fs::read_to_string(variable("READ")).unwrap_or_default();
        let answer = format!(
            "{read}{first}\narguments={arguments:?} target={} place={place} own={} writes={writes} host={}\n",
            variable("TARGET"),
            own.trim(),
            std::path::Path::new("/usr").exists(),
        );
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
        let _ = connection.write_all((head + &answer).as_bytes());
    }
}
