//! No field of tiers.yaml without a test of its effect: the list that whoever adds a field extends.

use tier_supervisor::config::TIER_FIELDS;

use crate::stack::project;

const HERE: &str = "tests/effects";
const STACK: &str = "tests/scenarios";
const INPUTS: &str = "services/tier-supervisor/tests/inputs";
const BROKER: &str = "services/secret-broker/tests";
const BRIDGE: &str = "services/channel-bridge/tests/bridge";

/// Field, folder, file and test. Several tests may show one field.
const EFFECTS: &[(&str, &str, &str, &str)] = &[
    ("name", STACK, "effects.rs", "an_agent_is_called_and_bounded_as_its_tier_says"),
    ("identity", STACK, "tiers.rs", "without_an_identity_it_reads_the_floor_and_no_more"),
    ("identity", STACK, "tiers.rs", "a_token_of_another_tier_is_refused"),
    ("port", BRIDGE, "dashboard/chat.rs", "a_message_is_a_turn_like_any_other"),
    ("port", INPUTS, "effects.rs", "gates_and_names_that_are_taken"),
    ("image", INPUTS, "effects.rs", "an_image_of_ones_own_is_the_agents"),
    ("runtime", HERE, "sandbox.rs", "a_command_is_run_as_the_filter_of_the_sandbox_takes_it"),
    ("runtime", HERE, "sandbox.rs", "without_a_sandbox_a_command_runs_where_the_agent_is"),
    ("runtime", STACK, "sandbox.rs", "a_command_of_the_agent_runs_nested_and_without_anything"),
    ("mcp", HERE, "approval.rs", "there_are_tools_of_mcp_servers_or_not_and_no_others_than_ours"),
    ("mcp_port", BROKER, "mcp/page.rs", "servers_tools_calls_and_refusals_are_shown_and_nothing_that_was_said"),
    ("mcp_port", INPUTS, "effects.rs", "gates_and_names_that_are_taken"),
    ("mcp_dir", INPUTS, "effects.rs", "an_image_of_anyones_runs_with_the_command_and_the_variables_of_its_folder"),
    ("mcp_token_var", INPUTS, "glue.rs", "what_differs_from_what_one_could_think_is_said_at_its_line"),
    ("no_proxy", HERE, "process.rs", "names_are_added_to_no_proxy_and_none_is_lost"),
    ("no_proxy", STACK, "effects.rs", "a_name_in_no_proxy_opens_nothing"),
    ("commands", HERE, "commands.rs", "only_commands_that_are_named_run"),
    ("commands", HERE, "commands.rs", "without_a_command_there_is_no_shell"),
    ("auto_approve", HERE, "approval.rs", "what_is_not_named_asks_and_no_means_no"),
    ("auto_approve", HERE, "approval.rs", "names_of_the_older_stack_are_those_of_today"),
    ("workspace_unrestricted", HERE, "commands.rs", "files_outside_the_workspace_are_open_or_not"),
    ("block_high_risk", HERE, "commands.rs", "dangerous_commands_are_blocked_or_not"),
    ("block_high_risk", HERE, "commands.rs", "what_is_held_for_dangerous_is_what_zeroclaw_holds_for_it"),
    ("build_sandbox", INPUTS, "glue.rs", "what_differs_from_what_one_could_think_is_said_at_its_line"),
    ("background", BROKER, "mcp/calls.rs", "outside_a_turn_no_tool_is_called"),
    ("background", INPUTS, "desired.rs", "equal_inputs_give_equal_states_and_each_change_its_own_hash"),
    ("credentials", BROKER, "proxy/requests.rs", "the_placeholder_becomes_the_secret_on_its_way_out"),
    ("credentials", STACK, "brokered.rs", "the_task_service_gets_the_real_token_and_the_tier_an_answer"),
    ("egress", BROKER, "proxy/doors.rs", "tunnels_lead_to_allowed_hosts_only"),
    ("egress", STACK, "tiers.rs", "without_an_identity_it_reads_the_floor_and_no_more"),
    ("tools", BROKER, "mcp/calls.rs", "a_tool_that_is_not_allowed_is_never_called"),
    ("model", HERE, "process.rs", "the_model_is_asked_for_by_the_tiers_name_for_it"),
    ("limits", HERE, "sandbox.rs", "a_command_is_run_as_the_filter_of_the_sandbox_takes_it"),
    ("limits", STACK, "effects.rs", "an_agent_is_called_and_bounded_as_its_tier_says"),
    ("channels", BRIDGE, "telegram/people.rs", "a_chat_belongs_to_a_tier_until_told_otherwise"),
    ("channels", INPUTS, "effects.rs", "a_bot_knows_the_tiers_that_name_it"),
];

#[test]
fn every_field_has_a_test_of_its_effect() {
    for field in TIER_FIELDS {
        let shown = EFFECTS.iter().any(|(of, ..)| *of == field);
        assert!(
            shown,
            "{field} has no test of its effect; write one, and add it to EFFECTS in tests/effects/fields.rs"
        );
    }
    for (field, folder, file, test) in EFFECTS {
        assert!(TIER_FIELDS.contains(field), "tiers.yaml has no field {field}");
        let path = project().join(folder).join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let is_test = [format!("#[test]\nfn {test}()"), format!("]\nasync fn {test}()")];
        assert!(is_test.iter().any(|start| text.contains(start)), "{field}: {} has no test {test}", path.display());
    }
}

/// What the head of tiers.yaml says of each field is what a person knows of it.
#[test]
fn the_head_of_the_file_names_every_field() {
    let text = std::fs::read_to_string(project().join("tiers.yaml")).unwrap();
    let head: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
    let named = |field: &str| {
        let names = head.iter().filter_map(|line| line.strip_prefix("#   ")).filter_map(|line| {
            // Two of them may stand before the description: "mcp, mcp_dir".
            line.split("  ").next().filter(|names| !names.starts_with(' '))
        });
        names.flat_map(|names| names.split(", ")).any(|name| name == field)
    };
    // No longer read, which a remark says where it stands.
    for field in TIER_FIELDS.into_iter().filter(|field| *field != "mcp_token_var") {
        assert!(named(field), "the head of tiers.yaml does not say what {field} is");
    }
}
