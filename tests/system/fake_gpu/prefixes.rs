//! Prompts that begin alike: what they have in common is read once for all who decode, where that
//! was found faster, and answers stay what they are alone.

use std::{fs, path::Path, thread};

use super::{Answer, Ask, EAGER, Gpu, models};

/// Of a GPU so small that it gains by few sequences.
const SMALL: [&str; 2] = ["--multiprocessors", "1"];
/// Each call is so slow that trials time few.
const SLOWER: [&str; 2] = ["--slower", "10000"];
const ARGS: [&str; 8] = [
    "--max-model-len",
    "1024",
    "--max-num-seqs",
    "8",
    "--max-num-batched-tokens",
    "256",
    "--kv-cache-memory-bytes",
    "4M",
];
/// Two chunks of attention, and a bit.
const COMMON: usize = 520;
const CLIENTS: u64 = 7;

/// Requests with the same first tokens, and others.
fn asked() -> Vec<Ask> {
    let common = Ask::new(COMMON, 1, 1).prompt;
    let of_client = |client: u64| {
        let mut ask = Ask::new(5 + client as usize, 12, 20 + client);
        if client > 0 {
            ask.prompt.splice(0..0, common.iter().copied());
        }
        Ask { temperature: if client.is_multiple_of(2) { 0.0 } else { 0.8 }, ..ask }
    };
    (0..CLIENTS).map(of_client).collect()
}

fn start(cache: &Path, fake_gpu: &[&str], more: &[&str]) -> Gpu {
    let cache = cache.to_str().expect("UTF-8");
    let args = [&ARGS[..], &["--cache-dir", cache], more].concat();
    Gpu::start(&models::tiny(), &[&SMALL[..], fake_gpu].concat(), &args)
}

fn prefix_launches(gpu: &Gpu) -> usize {
    gpu.trace().iter().filter(|work| work.name.contains("prefix_attention")).count()
}

/// All at once; the first who has the common tokens has computed them before.
fn together(gpu: &Gpu, asked: &[Ask]) -> Vec<Answer> {
    asked[1].answer(&gpu.server);
    thread::scope(|scope| {
        let clients: Vec<_> =
            asked.iter().map(|ask| scope.spawn(|| ask.answer(&gpu.server))).collect();
        clients.into_iter().map(|client| client.join().expect("it is answered")).collect()
    })
}

#[test]
fn what_prompts_have_in_common_is_read_once_and_changes_no_answer() {
    let cache = tempfile::tempdir().expect("a folder");
    drop(start(cache.path(), &SLOWER, &[EAGER]));
    // The trials found it right; that it is faster is not for a fake GPU to say.
    let folder = fs::read_dir(cache.path().join("forms")).expect("a folder of forms");
    let file = folder.map(|entry| entry.expect("an entry").path()).next().expect("a file");
    let text = fs::read_to_string(&file).expect("UTF-8");
    let faster = |line: &str| match line.split_once("\ttogether\tright\t") {
        Some((operation, _)) => format!("{operation}\ttogether\tright\t1\n"),
        None => format!("{line}\n"),
    };
    let changed: String = text.lines().map(faster).collect();
    assert_eq!(changed.matches("\ttogether\tright\t1\n").count(), 1, "{text}");
    fs::write(&file, changed).expect("the file can be written");
    let asked = asked();
    let alone: Vec<Answer> = {
        let gpu = start(cache.path(), &[], &[EAGER, "--disable-cascade-attn"]);
        let alone = asked.iter().map(|ask| ask.answer(&gpu.server)).collect();
        assert_eq!(together(&gpu, &asked), alone, "each by itself");
        assert_eq!(prefix_launches(&gpu), 0, "it was told not to");
        assert_eq!(gpu.server.metric("sconce:shared_prefix_tokens_total"), 0.0);
        alone
    };
    for mode in [&["--mode", "late"][..], &["--mode", "random", "--seed", "3"]] {
        let mut gpu = start(cache.path(), mode, &[]);
        assert_eq!(together(&gpu, &asked), alone, "{mode:?}");
        assert!(prefix_launches(&gpu) > 0, "{mode:?}: no step shared the prefix");
        let spared = gpu.server.metric("sconce:shared_prefix_tokens_total") as usize;
        assert!(spared > 0 && spared.is_multiple_of(512), "{spared} tokens");
        assert!(gpu.server.terminate().success(), "{mode:?}: {}", gpu.log());
        gpu.assert_clean("a shared prefix");
    }
}
