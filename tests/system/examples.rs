//! The examples of embedding, as they are in the repository.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{embeddings, model};

/// A built example, told of the test model.
fn example(name: &str) -> Command {
    example_of(name, model::dir())
}

fn example_of(name: &str, model: &Path) -> Command {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_sconce"));
    let mut command = Command::new(binary.with_file_name("examples").join(name));
    command.arg(model);
    command
}

fn output(name: &str) -> String {
    output_of(name, example(name))
}

fn output_of(name: &str, mut example: Command) -> String {
    let output = example.output().expect("the example was built with the tests");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn one_answer_is_streamed() {
    assert!(output("complete").contains("Paris"));
}

#[test]
fn many_prompts_are_completed_in_order_and_as_they_finish() {
    let output = output("many");
    let lines: Vec<_> = output.lines().collect();
    let starts = ["France", "Italy", "Spain", "Germany", "Japan", "Egypt"];
    let in_order = starts.iter().map(|country| format!("The capital of {country} is"));
    for (line, start) in lines.iter().filter(|line| line.starts_with("The")).zip(in_order) {
        assert!(line.starts_with(&start), "{line}");
    }
    assert!(lines[0].contains("Paris"), "{output}");
    let mut finished: Vec<_> =
        lines.iter().filter_map(|line| line.strip_prefix("finished: ")).collect();
    finished.sort_unstable();
    assert_eq!(finished, ["0", "1", "2", "3", "4", "5"]);
}

#[test]
fn a_tool_is_called_and_the_model_goes_on() {
    let output = output("tools");
    let (call, answer) = output.split_once('\n').expect("a call and an answer");
    assert!(call.starts_with("weather({") && call.contains("and 21 °C."), "{output}");
    assert!(!answer.trim().is_empty(), "{output}");
}

#[test]
fn an_answer_is_a_value_of_a_type() {
    let output = output("structured");
    let (city, cut) = output.split_once('\n').expect("two lines");
    assert!(city.starts_with("Paris in ") && city.contains("a capital: "), "{output}");
    assert!(cut.starts_with("cut: {"), "{output}");
}

#[test]
fn texts_that_are_alike_have_embeddings_that_are() {
    let output = output_of("embeddings", example_of("embeddings", embeddings::dir()));
    let cosines: Vec<f32> =
        output.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    assert_eq!(cosines.len(), 3, "{output}");
    assert!(cosines[0] > 0.99 && cosines[1] > cosines[2] + 0.2, "{output}");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_router_is_nested() {
    let mut child =
        Killed(example("nested").stdout(Stdio::piped()).spawn().expect("the example was built"));
    let stdout = child.0.stdout.take().expect("stdout is piped");
    let line = BufReader::new(stdout).lines().next().expect("it says its address").expect("UTF-8");
    let address = line.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/llm/v1"));
    let address = address.expect("an address");
    let get = |path: &str| {
        let mut connection = TcpStream::connect(address).expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("it answers");
        answer
    };
    assert!(get("/").ends_with("hello"));
    assert!(get("/llm/v1/models").contains("\"max_model_len\":2048"));
    assert!(get("/v1/models").starts_with("HTTP/1.1 404"));
}
