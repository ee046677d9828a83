//! What the command line takes, and what it refuses.

use std::time::Duration;

use clap::CommandFactory;

use super::parse::Pair;
use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

fn run(line: &str) -> RunArgs {
    match parse(line).unwrap().command {
        Command::Run(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_form_of_the_contract_is_taken() {
    for line in [
        "tartarus up --data d --listen 127.0.0.1:0 --leave-running --insecure --driver qemu-tcg --log-json",
        "tartarus run t --env K=V --env L --cpus 2 --memory 512M --timeout 30s --start-timeout 60s --workdir /w \
         --user u -i --name n --label K=V --idempotency-key k --json -- cmd --arg -x",
        "tartarus run t --detach --json -- cmd",
        "tartarus create t --ttl 10m --name n --json",
        "tartarus ps --all --json",
        "tartarus inspect i --json",
        "tartarus wait i",
        "tartarus logs i --follow --stream stderr",
        "tartarus exec i -i -- cmd",
        "tartarus kill i --signal TERM",
        "tartarus rm i j",
        "tartarus image import t.tar --name n",
        "tartarus image import - --name n",
        "tartarus image ls",
        "tartarus image rm n",
        "tartarus kernel add",
        "tartarus kernel add --deb f",
        "tartarus kernel add v --modules d",
        "tartarus kernel ls",
        "tartarus kernel rm k",
        "tartarus template create n --from i --cpus 1 --memory 1G --disk 2G --env K=V --workdir /w --user u",
        "tartarus template ls",
        "tartarus template inspect n",
        "tartarus template rm n",
        "tartarus doctor --json --reprobe",
        "tartarus -q completion bash",
        "tartarus man",
    ] {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        parse(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn values_are_read() {
    let args = run("tartarus run t --memory 1.5G --timeout 1m30s --label a=b=c --env A= -- prog -i --json");
    assert_eq!(args.memory, Some(1536));
    assert_eq!(args.timeout, Some(Duration::from_secs(90)));
    assert_eq!(args.labels, [Pair("a".to_owned(), "b=c".to_owned())]);
    assert_eq!(args.command, ["prog", "-i", "--json"]);
    assert!(!args.json && !args.interactive, "flags after -- belong to the program");
    assert_eq!(env_map(&args.env, |_| None).unwrap(), [("A".to_owned(), String::new())].into());
}

#[test]
fn nonsense_is_refused() {
    for line in [
        "tartarus",
        "tartarus run",
        "tartarus run t prog",
        "tartarus run t --memory -512M -- x",
        "tartarus run t --memory 0 -- x",
        "tartarus run t --memory 99999999G -- x",
        "tartarus run t --cpus 0 -- x",
        "tartarus run t --cpus -1 -- x",
        "tartarus run t --timeout 30 -- x",
        "tartarus run t --timeout 0s -- x",
        "tartarus run t --timeout -5s -- x",
        "tartarus run t --label x -- x",
        "tartarus run t --env =x -- x",
        "tartarus run t -i --detach -- x",
        "tartarus kernel add v",
        "tartarus kernel add --modules d",
        "tartarus kernel add --deb f v --modules d",
        "tartarus image import x",
        "tartarus template create n",
        "tartarus logs i --stream both",
        "tartarus up --listen nowhere",
        "tartarus rm",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn a_variable_that_is_not_set_is_named() {
    let args = run("tartarus run t --env HERE --env NOT_HERE -- x");
    let own = |name: &str| (name == "HERE").then(|| "mine".to_owned());
    assert_eq!(env_map(&args.env, own).unwrap_err().field.as_deref(), Some("env.NOT_HERE"));
    assert_eq!(env_map(&args.env[..1], own).unwrap(), [("HERE".to_owned(), "mine".to_owned())].into());
}
