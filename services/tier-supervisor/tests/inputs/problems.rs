//! Wrong files: every problem at once, at its place, with what to do, and no secret in any message.

use assistant_proto::config::Mode;
use proptest::prelude::*;

use crate::stack::{Stack, write};

const TASKS: &str = "tiers:
  - name: tasks
    identity: tasks
    port: 3001
    mcp: true
    credentials:
      - secret: marvin_api_key
        hosts: [serv.amazingmarvin.com]
        header: X-API-Token
    tools: [{server: marvin, allow: [get_tasks]}]
";

#[test]
fn the_base_of_these_tests_is_fine() {
    assert_eq!(Stack::with_tiers(TASKS).problems(), Vec::<String>::new());
}

#[test]
fn everything_is_reported_at_once() {
    let problems = Stack::with_tiers(
        "tiers:
  - name: tasks
    identiy: tasks
    port: 3001
    mcp: true
    credentials:
      - secret: marvin_api_key
        hosts: [serv.amazingmarvin.com, evil.example]
        header: X-API-Token
        for: [marvn]
  - name: tasks
    port: 3001
    runtime: dockr
    commands: curl
    limits: {memory: 1tb}
volumes: {}
",
    )
    .problems();
    let expected = [
        ("tiers.yaml:3:5: a tier has no field \"identiy\"", "did you mean \"identity\"?"),
        (
            "tiers.yaml:8:41: evil.example is not on the allowlist, and a tier can only narrow it",
            "add evil.example to squid/allowlist.txt, or remove it here",
        ),
        ("tiers.yaml:10:15: the tier has no such MCP server", "did you mean \"marvin\"?"),
        ("tiers.yaml:11:11: there are two tiers with the name tasks", "rename one"),
        ("tiers.yaml:12:11: port 3001 is already used by \"port\" of tasks", "choose another one"),
        ("tiers.yaml:13:14: this runtime does not exist", "did you mean \"docker\"?"),
        ("tiers.yaml:14:15: \"commands\" is text", "it must be a list"),
        ("tiers.yaml:15:22: this is not an amount of memory", "write it like 512m or 2g"),
        ("tiers.yaml:16:1: tiers.yaml has no field \"volumes\"", "use one of: defaults, tiers"),
    ];
    for (what, fix) in expected {
        let found = problems.iter().find(|problem| problem.starts_with(what));
        assert!(found.is_some_and(|problem| problem.contains(fix)), "{what}; {fix}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn single_problems() {
    let replace = |from: &str, to: &str| TASKS.replace(from, to);
    for (text, what) in [
        (String::new(), "tiers.yaml is empty"),
        ("tiers: []\n".to_owned(), "there is no tier"),
        (replace("    port: 3001\n", ""), "this tier has no port"),
        (replace("3001", "80"), "it must be a port from 1024 to 65535"),
        (replace("3001", "4222"), "already used by the gate of NATS"),
        (replace("name: tasks", "name: Tasks!"), "not a tier name"),
        (replace("name: tasks", "name: stack"), "not a tier name"),
        (replace("name: tasks", "name: jaeger"), "jaeger.localhost is the site of another page"),
        (format!("{TASKS}  - name: mcp-tasks\n    port: 3002\n"), "mcp-tasks.localhost is the site of another page"),
        (replace("    mcp: true\n", ""), "\"tools\" has no effect without mcp: true"),
        (replace("mcp: true", "mcp: yes please"), "it must be true or false"),
        (replace("mcp: true", "mcp: true\n    mcp_dir: mcp/nowhere"), "the MCP folder is not complete"),
        (replace("marvin_api_key", "other_key"), "secret other_key is missing"),
        (replace("marvin_api_key", "other_key"), "has no placeholder"),
        (replace("secret: marvin_api_key", "placeholder: x"), "this credential names no secret"),
        (replace("header: X-API-Token", "header: Host"), "the header to inject into belongs to the connection"),
        (replace("header: X-API-Token", "header: Range"), "the header to inject into belongs to the connection"),
        (
            replace("header: X-API-Token", "header: Proxy-Anything"),
            "the header to inject into belongs to the connection",
        ),
        (replace("header: X-API-Token", "header: 'X Y'"), "not a lower-case header name"),
        (replace("header: X-API-Token", "header: Traceparent"), "this header is set by the broker"),
        (replace("header: X-API-Token", "template: x"), "does not say where the secret goes"),
        (
            replace("header: X-API-Token", "header: X-API-Token\n        template: Bearer"),
            "the template needs {} exactly once",
        ),
        (replace("[serv.amazingmarvin.com]", "[]"), "this credential names no host"),
        (replace("[serv.amazingmarvin.com]", "[.amazingmarvin.com]"), ".amazingmarvin.com is not on the allowlist"),
        (replace("[serv.amazingmarvin.com]", "[model.drill.example]"), "includes a host of the model route"),
        (replace("[serv.amazingmarvin.com]", "[10.0.0.1]"), "this is not a host"),
        (replace("header: X-API-Token", "header: X-API-Token\n        methods: [CONNECT]"), "this is not a method"),
        (replace("header: X-API-Token", "header: X-API-Token\n        paths: [api]"), "this is not a path pattern"),
        (replace("header: X-API-Token", "header: X-API-Token\n        paths: ['/..;a']"), "this is not a path pattern"),
        (replace("header: X-API-Token", "header: X-API-Token\n        paths: ['/a*']"), "this is not a path pattern"),
        (replace("server: marvin", "server: marvins"), "the tier has no such MCP server"),
        (replace("[get_tasks]", "['*']"), "an item of \"allow\" is not usable"),
        (replace("[get_tasks]", "[get_tasks, get_tasks]"), "has this item twice"),
        (
            replace("    mcp: true\n", "    mcp: true\n    model: {name: assistent}\n"),
            "there is no such model; did you mean \"assistant\"?",
        ),
        (replace("    mcp: true\n", "    mcp: true\n    channels: [telegram]\n"), "\"channels\" is a list"),
        (
            replace("    mcp: true\n", "    mcp: true\n    image: zeroclaw:v9.9.9\n"),
            "this image is not on this machine",
        ),
        (
            replace("    mcp: true\n", "    mcp: true\n    egress: {host: [serv.amazingmarvin.com]}\n"),
            "\"egress\" has no field \"host\"; did you mean \"hosts\"?",
        ),
        (replace("    mcp: true\n", "    mcp: true\n    mcp: false\n"), "duplicated key in mapping"),
    ] {
        let problems = Stack::with_tiers(&text).problems();
        assert!(problems.iter().any(|problem| problem.contains(what)), "{what}\nnot in {problems:#?}\nof {text}");
        for problem in &problems {
            assert!(problem.contains("; "), "no fix: {problem}");
        }
    }
}

#[test]
fn what_the_broker_would_refuse_is_reported_at_its_section() {
    let two = TASKS.replace(
        "    tools:",
        "      - secret: marvin_api_key
        hosts: [serv.amazingmarvin.com]
        header: Range
      - secret: marvin_api_key
        hosts: [serv.amazingmarvin.com]
        header: X-Other
        template: 'no place'
    tools:",
    );
    let problems = Stack::with_tiers(&two).problems();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].starts_with("tiers.yaml:10:9: the header to inject into"), "{problems:#?}");
    assert!(problems[0].contains("change rule marvin_api_key-2"), "{problems:#?}");
    assert!(problems[1].starts_with("tiers.yaml:13:9: the template needs {}"), "{problems:#?}");
}

#[test]
fn secrets_files_must_be_there_private_and_full() {
    let mut stack = Stack::with_tiers(TASKS);
    let path = stack.settings.state_dir.join("secrets/marvin_api_key");
    write(&path, "hunter2hunter2", 0o644);
    let problems = stack.problems().join("\n");
    assert!(
        problems.contains("tiers.yaml:7:9: secret marvin_api_key cannot be used") && problems.contains("chmod 600"),
        "{problems}"
    );
    assert!(!problems.contains("hunter2"), "{problems}");
    let long = "x".repeat(8193);
    for (text, why) in [
        ("", "is empty"),
        ("\n", "is empty"),
        (long.as_str(), "is longer than 8192 bytes"),
        ("hunter2hunter2\nhunter3", "has more than one line"),
        ("hunter2hunter2\n\n", "has more than one line"),
        ("hunter2hunter2\r\n", "has control characters"),
        ("hunter2\thunter2", "has control characters"),
        ("hunter2 hunter2", "has blanks"),
        ("hunter2-\u{e9}", "has blanks, or letters outside ASCII"),
    ] {
        for (secret, place) in [("marvin_api_key", "tiers.yaml:7:9: "), ("model_api_key", "named in supervisor.json")] {
            stack.secret("marvin_api_key", "it-is-fine");
            stack.secret("model_api_key", "fine\n");
            assert_eq!(stack.problems(), Vec::<String>::new());
            stack.secret(secret, text);
            let problems = stack.problems().join("\n");
            let file = format!("state/secrets/{secret} {why}");
            assert!(problems.contains(&file) && problems.contains(place), "{text:?}: {problems}");
            assert!(problems.contains("; ") && !problems.contains("hunter2"), "{text:?}: {problems}");
        }
    }
    // A model at home may have a short key; a credential that the broker could not find again in answers is none.
    stack.secret("marvin_api_key", "hunter2\n");
    stack.secret("model_api_key", "x");
    let short = stack.problems().join("\n");
    assert!(short.starts_with("tiers.yaml:7:9: ") && short.contains("marvin_api_key has fewer than 8 char"), "{short}");
    assert!(!short.contains("hunter2") && !short.contains("model_api_key"), "{short}");
    stack.secret("marvin_api_key", "two\nlines");
    stack.settings.mode = Mode::Live;
    stack.settings.drill_table = None;
    let live = stack.problems().join("\n");
    assert!(live.contains("sudo install -m 600 /dev/stdin state/secrets/marvin_api_key"), "{live}");
    stack.settings.mode = Mode::Drill;
    stack.settings.drill_table = Some(8787);
    std::fs::remove_file(&path).unwrap();
    let in_a_drill = stack.problems().join("\n");
    assert!(in_a_drill.contains("secret marvin_api_key is missing; run deploy/up.sh --drill again"), "{in_a_drill}");
    stack.settings.mode = Mode::Live;
    let problems = stack.problems().join("\n");
    assert!(
        problems.contains("secret marvin_api_key is missing; write MARVIN_API_KEY=<value> into .env"),
        "{problems}"
    );
    assert!(problems.contains("sudo install -m 600 /dev/stdin state/secrets/marvin_api_key"), "{problems}");
    stack.secret("marvin_api_key", "it-is-fine");
    std::fs::remove_file(stack.settings.state_dir.join("secrets/model_api_key")).unwrap();
    assert!(stack.problems().join("\n").contains("secret model_api_key, named in supervisor.json, is missing"));
}

#[test]
fn files_that_are_there_are_not_to_be_created() {
    let stack = Stack::with_tiers(TASKS);
    let path = stack.dir.path().join("tiers.yaml");
    let said = || stack.problems().join("\n");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(said().contains("is not UTF-8 text; save it again as UTF-8 text"), "{}", said());
    std::fs::File::create(&path).unwrap().set_len(1 << 21).unwrap();
    assert!(said().contains("that cannot be the right file; put the right file in its place"), "{}", said());
    std::fs::remove_file(&path).unwrap();
    assert!(said().contains("create the file; deploy/drill/tiers.yaml shows the form"), "{}", said());
    std::fs::create_dir(&path).unwrap();
    assert!(said().contains("is not a regular file; put a regular file in its place"), "{}", said());
}

#[test]
fn tools_that_a_known_server_does_not_have_are_remarked_on() {
    let text = TASKS.replace("[get_tasks]", "[get_tasks, get_taks]")
        + "    auto_approve: [marvin__get_goals, marvin__get_gaols, memory_recall]\n";
    let stack = Stack::with_tiers(&text);
    let remarks = stack.prepare().unwrap().tiers.remarks;
    let found: Vec<_> = remarks
        .iter()
        .filter(|remark| remark.what.contains("not known to have a tool"))
        .map(|remark| (remark.line, remark.column, remark.fix.as_str()))
        .collect();
    assert_eq!(
        found,
        [(10, 49, "did you mean \"get_tasks\"?"), (11, 39, "did you mean \"get_goals\"?")],
        "{remarks:?}"
    );
    // Said of the project's own files, it would be a mistake in the list.
    let own = Stack::drill().prepare().unwrap().tiers.remarks;
    assert!(!own.iter().any(|remark| remark.what.contains("not known to have a tool")), "{own:?}");
}

#[test]
fn everything_but_images_is_checked_before_there_are_any() {
    let check = |text: &str| {
        let stack = Stack::with_tiers(text);
        std::fs::remove_file(stack.dir.path().join("images.json")).unwrap();
        let settings = serde_json::json!({
            "mode": "drill", "tiers_file": stack.settings.tiers_file, "allowlist_file": stack.settings.allowlist_file,
            "squid_template": stack.settings.squid_template, "images_file": stack.settings.images_file,
            "state_dir": stack.settings.state_dir, "run_dir": "/run/assistant", "pool": "10.87.0.0/16",
            "operator": {"user": "x", "uid": 1000, "home": "/home/x"}, "bin_dir": "/usr/local/lib/assistant/bin",
            "dns_servers": ["198.51.100.53"], "upstream_roots": stack.settings.upstream_roots, "drill_table": 8787,
            "model": {"base_url": "https://model.drill.example/v1", "key_secret": "model_api_key",
                      "models": {"assistant": "drill-model", "thinker": "drill-model"}},
            "otlp": true, "log_filter": "info"
        });
        let path = stack.dir.path().join("supervisor.json");
        write(&path, &settings.to_string(), 0o644);
        let check = |more: &[&str]| {
            let program = env!("CARGO_BIN_EXE_tier-supervisor");
            let output = std::process::Command::new(program)
                .args(["check-config", "--config"])
                .arg(&path)
                .args(more)
                .output()
                .unwrap();
            let said = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8(said).unwrap())
        };
        (check(&[]), check(&["--before-images"]))
    };
    let ((with, said), (without, remarks)) = check(&TASKS.replace("[get_tasks]", "[get_taks]"));
    assert!(with == Some(2) && said.contains("images.json"), "{said}");
    assert!(without == Some(0) && remarks.contains("note: ") && remarks.contains("get_tasks"), "{remarks}");
    let (_, (wrong, said)) = check(&TASKS.replace("identity:", "identiy:"));
    assert!(wrong == Some(2) && said.contains("did you mean \"identity\"?"), "{said}");
}

#[test]
fn one_mistake_is_said_once() {
    for (wrong, what) in [("identiti: tasks", "has no field \"identiti\""), ("identity: [tasks]", "tiers.yaml:3:15")] {
        let problems = Stack::with_tiers(&TASKS.replace("identity: tasks", wrong)).problems();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].contains(what), "{problems:#?}");
    }
    for none in ["", "identity:", "identity: null"] {
        let problems = Stack::with_tiers(&TASKS.replace("identity: tasks", none)).problems();
        let [problem] = problems.as_slice() else { panic!("{none:?}: {problems:#?}") };
        assert!(problem.contains("a tier with identity: null has no credentials"), "{problem}");
    }
}

#[test]
fn a_secret_pasted_anywhere_is_never_repeated() {
    let secret = "Xy9+hunter2/Zq";
    for at in [
        "marvin_api_key",
        "serv.amazingmarvin.com",
        "X-API-Token",
        "get_tasks",
        "3001",
        "identity",
        "tasks",
        "true",
        "marvin,",
    ] {
        let problems = Stack::with_tiers(&TASKS.replace(at, secret)).problems();
        assert!(!problems.is_empty(), "{at}");
        assert!(problems.iter().all(|problem| !problem.contains("hunter2")), "{at}: {problems:#?}");
    }
}

#[test]
fn wrong_mcp_folders() {
    let stack = Stack::with_tiers(TASKS);
    std::fs::remove_file(stack.dir.path().join("mcp")).unwrap();
    let folder = stack.dir.path().join("mcp/tasks");
    write(
        &folder.join("catalogs/catalog.yaml"),
        "registry:
  marvin:
    image: zeroclaw/amazing-marvin:local
    type: remote
    secrets:
      - {name: marvin_api_key, env: PATH}
      - {name: second_key, env: SECOND_KEY}
",
        0o644,
    );
    write(&folder.join("registry.yaml"), "registry:\n  marvin: {ref: x}\n  marvim: {}\n", 0o644);
    write(&folder.join("config.yaml"), "marvim: {}\n", 0o644);
    write(&folder.join("secrets.env"), "marvin_api_key=kD93hunter2\n", 0o644);
    let problems = stack.problems();
    for (file, what) in [
        ("mcp/tasks/catalogs/catalog.yaml:4:11", "only \"type: server\" is supported"),
        ("mcp/tasks/catalogs/catalog.yaml:6:37", "this variable is set by the stack itself"),
        ("mcp/tasks/registry.yaml:2:17", "a \"ref\" to another catalogue is not supported"),
        ("mcp/tasks/registry.yaml:3:3", "defines no server \"marvim\"; did you mean \"marvin\"?"),
        ("mcp/tasks/config.yaml:1:1", "defines no server \"marvim\"; did you mean \"marvin\"?"),
        ("mcp/tasks/secrets.env:1:1", "this value does not look like a placeholder"),
        ("mcp/tasks/catalogs/catalog.yaml:7:16", "secret \"second_key\" of server marvin has no placeholder"),
        ("mcp/tasks/catalogs/catalog.yaml:3:12", "the image of server marvin is not on this machine"),
    ] {
        assert!(
            problems.iter().any(|problem| problem.starts_with(file) && problem.contains(what)),
            "{file} {what}\nnot in {problems:#?}"
        );
    }
    assert!(problems.iter().all(|problem| !problem.contains("hunter2")), "{problems:#?}");
    assert_eq!(problems.len(), 8, "nothing is blamed on tiers.yaml: {problems:#?}");
}

#[test]
fn two_tiers_never_share_the_name_of_a_container() {
    let problems = |servers: [&str; 2]| {
        let stack = Stack::with_tiers(
            "tiers:
  - {name: a, port: 3001, mcp: true, tools: []}
  - {name: a-b, port: 3002, mcp: true, tools: []}
",
        );
        std::fs::remove_file(stack.dir.path().join("mcp")).unwrap();
        for (tier, server) in ["a", "a-b"].into_iter().zip(servers) {
            let folder = stack.dir.path().join("mcp").join(tier);
            let entry = format!("{server}: {{image: \"zeroclaw/amazing-marvin-mcp:local\", type: server}}");
            write(&folder.join("catalogs/catalog.yaml"), &format!("registry:\n  {entry}\n"), 0o644);
            write(&folder.join("registry.yaml"), &format!("registry:\n  {server}: {{}}\n"), 0o644);
            write(&folder.join("config.yaml"), "{}\n", 0o644);
            write(&folder.join("secrets.env"), "\n", 0o644);
        }
        stack.problems()
    };
    assert_eq!(problems(["b-d", "c"]), Vec::<String>::new());
    let found = problems(["b-c", "c"]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with("tiers.yaml:3:5: ") && found[0].contains("mcp-a-b-c"), "{found:#?}");
    assert!(found[0].contains("tier a and server b-c; rename one"), "{found:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is cut out of, or put into, a good file: an answer, never a panic, and never a secret.
    #[test]
    fn mutilated_files_never_panic(at in 0_usize..400, cut in 0_usize..40, put in "[-\\[\\]{}:,&*!|>'\"%#a-z0-9 \\n]{0,12}") {
        let characters: Vec<char> = TASKS.chars().collect();
        let at = at.min(characters.len());
        let end = (at + cut).min(characters.len());
        let mut text: String = characters[..at].iter().collect();
        text.push_str(&put);
        text.extend(&characters[end..]);
        let stack = Stack::with_tiers(&text);
        for problem in stack.problems() {
            prop_assert!(!problem.contains("real-"), "{problem}");
        }
    }
}
