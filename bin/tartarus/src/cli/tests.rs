//! What the command line takes, and what it refuses.

use std::time::Duration;

use clap::CommandFactory;
use tartarus_types::{NetMode, NetRequest, Refusal};

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
        "tartarus pause i j",
        "tartarus resume i j",
        "tartarus run t --code print(1)",
        "tartarus run t --code -1 --require-snapshot --shred --idle-timeout 1m -- a b",
        "tartarus run t --code-file - --no-snapshot",
        "tartarus exec i --code x -- a",
        "tartarus exec i --code-file f",
        "tartarus create t --require-snapshot --shred --idle-timeout 10m",
        "tartarus create t --no-snapshot",
        "tartarus df --json",
        "tartarus prune --older-than 7d --dry-run --json",
        "tartarus prune --force",
        "tartarus prune -y --older-than 0s",
        "tartarus up --retain 30d --retain-count 5 --min-free 0 --start-slots 4 --snapshot-memory 1G",
        "tartarus template create n --from i --warm true --runner python --preload a,b.c --shape 2x1G --shape 1x64",
        "tartarus template create n --from i --no-snapshot --detach",
        "tartarus template rebuild n m --detach",
        "tartarus template rebuild --all",
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
        "tartarus up --net open --public-ports --net-most-connections 9 --net-most-mbit 5 --net-most-packets 10 --net-range 10.9.0.0/16 --net-pool 0 --dns 192.0.2.1 --dns [2001:db8::1]:54",
        "tartarus run t --net none -- x",
        "tartarus run t --net open --net-mbit 5 --net-packets 100 --net-connections 8 -- x",
        "tartarus create t --allow-cidr 203.0.113.0/24,8.8.8.8 --allow-cidr 9.9.9.9 --allow-port 443,53/udp",
        "tartarus template create n --from i --allow-domain a.org,*.b.org",
        "tartarus net update i --net allow --json",
        "tartarus net show i --json",
        "tartarus port i 80",
        "tartarus port i 80 --listen 0.0.0.0:8080 --json",
        "tartarus port i --list",
        "tartarus port i --remove 80",
        "tartarus doctor --json --reprobe",
        "tartarus torture net --quick --kernel k.deb --driver qemu-kvm --json",
        "tartarus bench start",
        "tartarus bench start --driver firecracker --image t.tar --data d --json --json-file f --dir d --check",
        "tartarus bench start --vmlinuz v --modules m --rounds 3 --parallel 1,2 --only docker,bare --soak 100 --idle 10",
        "tartarus bench start --quick --kernel-tar k --bare-restore b",
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
fn memory_is_sold_once_unless_told_otherwise() {
    let up = |line: &str| match parse(line).unwrap().command {
        Command::Up(args) => args.overcommit.hundredths(),
        other => panic!("{other:?}"),
    };
    assert_eq!((up("tartarus up"), up("tartarus up --overcommit 1.5")), (100, 150));
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
        "tartarus pause",
        "tartarus run t --code x --code-file f",
        "tartarus run t --require-snapshot --no-snapshot -- x",
        "tartarus run t --idle-timeout 0s -- x",
        "tartarus template create n --from i --preload numpy",
        "tartarus template create n --from i --runner cobol",
        "tartarus template create n --from i --shape 2",
        "tartarus template create n --from i --shape 0x1G",
        "tartarus template create n --from i --shape 1x1X",
        "tartarus template create n --from i --no-snapshot --shape 1x1G",
        "tartarus template rebuild",
        "tartarus template rebuild n --all",
        "tartarus prune --older-than 7",
        "tartarus prune --force --dry-run",
        "tartarus up --min-free x",
        "tartarus up --start-slots 0",
        "tartarus run t --net all -- x",
        "tartarus run t --net-mbit x -- x",
        "tartarus net",
        "tartarus net update",
        "tartarus port i",
        "tartarus port i 0",
        "tartarus port i 70000",
        "tartarus port i 80 --list",
        "tartarus port i 80 --remove 80",
        "tartarus port i --list --listen 127.0.0.1:1",
        "tartarus port i 80 --listen localhost",
        "tartarus up --net all",
        "tartarus up --net-range 10.9.0.1/16",
        "tartarus up --net-range 10.9.0.0/30",
        "tartarus up --net-range fd00::/64",
        "tartarus up --net-pool -1",
        "tartarus up --dns localhost",
        "tartarus up --dns 192.0.2.1:0",
        "tartarus up --overcommit 0.5",
        "tartarus up --overcommit 11",
        "tartarus bench",
        "tartarus bench start --driver vmware",
        "tartarus bench start --rounds 0",
        "tartarus bench start --parallel 65",
        "tartarus bench start --idle 0",
        "tartarus bench start --vmlinuz v",
        "tartarus bench start --kernel k --vmlinuz v --modules m",
        "tartarus torture net --modules m",
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

#[test]
fn a_template_is_read_whole() {
    let line = "tartarus template create n --from i --runner python --preload numpy,os.path --shape 2x1.5G";
    let Command::Template(TemplateCommand::Create(args)) = parse(line).unwrap().command else { panic!("{line}") };
    assert_eq!(args.preload, ["numpy", "os.path"]);
    assert_eq!(args.shapes, [tartarus_types::Shape { cpus: 2, memory_mib: 1536 }]);
    let Command::Up(up) = parse("tartarus up --min-free 0 --retain 1h").unwrap().command else { panic!("no server") };
    assert_eq!((up.min_free, up.retain, up.retain_count), (0, Duration::from_secs(3600), 10_000));
}

fn asked(flags: &str) -> Result<Option<NetRequest>, Refusal> {
    run(format!("tartarus run t {flags} -- x").replace("  ", " ").as_str()).net.request()
}

#[test]
fn lists_imply_a_network_and_nothing_else_does() {
    assert_eq!(asked("").unwrap(), None, "the template decides");
    let request = asked("--allow-cidr 8.8.8.8,9.9.9.9 --allow-cidr 1.1.1.1 --allow-port 443").unwrap().unwrap();
    assert_eq!(request.mode, NetMode::Allow);
    assert_eq!(request.cidrs, ["8.8.8.8", "9.9.9.9", "1.1.1.1"]);
    assert_eq!(request.ports, ["443"]);
    assert_eq!(asked("--allow-domain *.a.org").unwrap().unwrap().domains, ["*.a.org"]);
    let open = asked("--net open --net-mbit 5 --allow-cidr 10.0.0.0/8").unwrap().unwrap();
    assert_eq!((open.mode, open.limits.mbit, open.cidrs.len()), (NetMode::Open, Some(5), 1));
    assert_eq!(asked("--net none").unwrap(), Some(NetRequest::default()), "not the template's");
    for (flags, field) in [
        ("--net none --allow-cidr 8.8.8.8", "allow_cidr"),
        ("--net none --allow-port 443", "allow_port"),
        ("--allow-domain a.org --net none", "allow_domain"),
        ("--net-mbit 5", "net"),
        ("--net none --net-connections 5", "net"),
    ] {
        assert_eq!(asked(flags).unwrap_err().field.as_deref(), Some(field), "{flags}");
    }
}

#[test]
fn a_server_gives_what_is_listed_and_no_more_unless_told() {
    let up = |line: &str| match parse(line).unwrap().command {
        Command::Up(args) => args,
        other => panic!("{other:?}"),
    };
    let usual = up("tartarus up");
    assert_eq!((usual.net, usual.public_ports, usual.net_pool), (NetChoice::Allow, false, 4));
    assert_eq!((usual.net_range.to_string(), usual.dns.len()), ("198.18.0.0/16".to_owned(), 0));
    let dns = up("tartarus up --dns 192.0.2.1 --dns 192.0.2.2:5353 --dns 2001:db8::1").dns;
    assert_eq!(
        dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1:53", "192.0.2.2:5353", "[2001:db8::1]:53"]
    );
    let Command::Port(port) = parse("tartarus port i 80").unwrap().command else { panic!("no port") };
    assert_eq!((port.port, port.listen.to_string()), (Some(80), "127.0.0.1:0".to_owned()));
}

#[test]
fn the_networks_heading_holds_its_flags_and_no_others() {
    for command in ["run", "create"] {
        let mut cli = Cli::command();
        let help = cli.find_subcommand_mut(command).unwrap().render_long_help().to_string();
        let (before, network) = help.split_once("\nNetwork:\n").unwrap();
        assert!(before.contains("--name") && before.contains("--label"), "{before}");
        assert!(network.contains("--allow-domain") && !network.contains("--label"), "{network}");
    }
}
