"""Where each fault and each bad input has its test: two tables that cannot go stale.

A row is what goes wrong, and the tests that show what the answer is (file without ``test_`` and
``.py``, and the test's name without ``test_``).
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.refusals import change, project

BAD_INPUTS = {
    "params.yaml missing, empty, not a mapping, a tab, an open bracket": "bad_recipe a_file_that_is_no_recipe_is_refused_with_its_line; bad_recipe what_is_not_a_file_is_not_read",
    "a key twice": "bad_recipe a_file_that_is_no_recipe_is_refused_with_its_line",
    "an unknown key": "bad_recipe a_value_that_cannot_be_is_refused_by_its_key_before_any_work; recipe a_bad_recipe_names_file_key_and_fault",
    "lr: 3e-4": "bad_recipe numbers_are_read_as_yaml_1_2_has_them",
    "a value of another type": "bad_recipe a_value_that_cannot_be_is_refused_by_its_key_before_any_work",
    "nan, inf, 1e400, negative, zero": "bad_recipe a_value_that_cannot_be_is_refused_by_its_key_before_any_work",
    "a seed of 25 digits": "bad_recipe a_value_that_cannot_be_is_refused_by_its_key_before_any_work",
    "heads that do not divide, odd head width": "bad_recipe a_value_that_cannot_be_is_refused_by_its_key_before_any_work",
    "6 of 4 shared heads, 3 of 2 experts, 1 expert, capacity 0": "bad_recipe a_value_that_cannot_be_is_refused_by_its_key_before_any_work",
    "seq_len beyond the tokens of a source": "bad_data too_little_text_for_a_window_or_a_phase_says_what_would_fit; tokens_mix too_few_tokens_for_a_window_are_refused_with_the_largest_that_fits",
    "a batch beyond the text": "tokens_mix too_many_epochs_are_refused_with_numbers_and_a_remedy_that_works; tokens_shares sources_that_cannot_fill_a_phase_are_refused",
    "a warmup as long as the phase": "bad_recipe a_value_that_cannot_be_is_refused_by_its_key_before_any_work",
    "phase 2 without phase 1": "bad_data training_without_what_comes_before_names_the_command",
    "a start of another shape or tokenizer": "bad_data a_network_of_another_shape_lists_what_differs; import an_import_with_another_tokenizer_is_refused; tokens_shards shards_of_another_tokenizer_are_refused",
    "a corpus that is missing, empty, not readable, matched by no glob": "bad_data a_missing_corpus_says_what_was_looked_for; bad_data a_glob_never_leaves_a_file_out_in_silence",
    "a corpus of nothing, of white space, of duplicates": "bad_data a_source_of_nothing_ends_with_the_count_of_every_filter; bad_data a_corpus_of_one_text_over_and_over_is_refused; tokens_tokenizer a_corpus_without_training_text_is_refused",
    "a corpus smaller than its split": "bad_data a_split_that_takes_all_is_refused; data_stages a_small_source_holds_out_one_document_and_a_tiny_one_none",
    "bytes that are not UTF-8": "data_readers a_bad_file_is_named_with_its_fault_and_remedy; data_readers bytes_that_are_not_utf8_are_replaced_one_by_one_where_the_recipe_says_so",
    "UTF-16, byte order mark, CRLF, NUL, U+2028": "data_readers a_bad_file_is_named_with_its_fault_and_remedy; data_readers a_line_is_a_document_and_only_a_line_feed_ends_it; data_clean characters_come_into_one_form",
    "lone surrogates": "data_readers lone_surrogates_are_replaced_and_counted; tokens_tokenizer half_a_surrogate_pair_is_refused_in_words",
    "gzip, parquet or garbage that calls itself text": "data_readers a_bad_file_is_named_with_its_fault_and_remedy; data_readers a_gzipped_file_is_told_apart_from_text_by_its_bytes",
    "a line of 400 MB, a word of 400 kB": "data_shards a_document_that_is_too_long_is_dropped_and_booked_with_all_its_bytes; bad_data one_endless_word_is_read_in_seconds; tokens_tokenizer one_endless_word_does_not_hold_up_training",
    "JSON lines that are none, lack the text, hold something else": "bad_data a_bad_line_is_named",
    "parquet without the column": "bad_data a_bad_parquet_file_is_named",
    "the names of special tokens in a text": "tokens_tokenizer the_name_of_a_special_token_in_a_text_is_text",
    "a vocabulary smaller than the alphabet": "bad_recipe a_value_that_cannot_be_is_refused_by_its_key_before_any_work; tokens_tokenizer a_vocabulary_smaller_than_the_alphabet_is_refused",
    "a vocabulary larger than the text can teach": "bad_data a_vocabulary_that_cannot_be_learnt_is_said_and_fits_its_shards",
    "ids beyond 65535": "tokens_shards the_largest_id_of_a_vocabulary_is_stored_without_wrapping",
    "a shard with an id beyond the vocabulary": "tokens_shards an_id_that_the_vocabulary_lacks_is_found_even_under_a_right_checksum",
    "a shard that is cut, of another size, no shard": "tokens_shards damaged_shards_are_refused_in_words; tokens_shards sizes_are_checked_even_where_content_is_not",
    "a shard or manifest that was tampered with": "bad_data a_tampered_shard_is_named; tokens_mix a_mix_changed_by_hand_is_refused",
    "tokenizer.json missing, no JSON, of another vocabulary": "bad_data a_tokenizer_that_is_none_is_named; bad_data a_missing_tokenizer_names_the_command; release_export a_tokenizer_of_another_size_is_refused",
    "weights that are damaged, or a page of HTML": "bad_model a_folder_that_makes_no_model_is_refused_whether_its_manifest_agrees_or_not",
    "weights with keys missing, left over, misshaped": "bad_model a_folder_that_makes_no_model_is_refused_whether_its_manifest_agrees_or_not; model_load of_many_keys_at_fault_ten_are_named_and_the_rest_counted",
    "weights that are not numbers": "bad_model a_folder_that_makes_no_model_is_refused_whether_its_manifest_agrees_or_not; release_export broken_weights_are_not_exported",
    "a foreign pickle": "bad_model a_foreign_file_is_read_without_running_it; import a_file_with_code_in_it_is_not_opened",
    "a model, alias or version that is not registered": "registry_register an_address_that_leads_nowhere_says_what_there_is",
    "an address or a manifest with ..": "bad_model a_manifest_that_is_none_is_refused; bad_model what_is_not_there_or_cannot_be_is_said; registry_register an_address_that_leads_nowhere_says_what_there_is",
    "MLflow down, slow, refusing": "registry_tracking the_follower_of_a_dead_server_says_so_once_and_the_record_is_caught_up_later; registry_tracking a_server_that_accepts_and_never_answers_holds_the_follower_for_seconds_only",
    "MLflow: a figure that is no number, a value too long": "registry_tracking values_that_are_no_numbers_are_left_out",
    "Prefect down": "flows_services a_server_that_was_named_and_does_not_answer_is_an_error; flows_services a_flow_needs_no_server_and_leaves_nothing_behind",
    "a deployment of a phase that is not there": "flows_services a_wrong_phase_is_refused_in_words_before_any_server_starts",
    "no work pool, no worker": "flows_services up_a_deployment_a_cancelled_run_and_down; cli the_doctor_looks_at_everything",
    "a disk that is full or read-only": "machine_faults a_disk_that_is_full_leaves_no_half_output_and_the_next_run_ends_the_same; machine_faults a_read_only_folder_is_refused_before_training_starts",
    "no GPU": "machine_faults a_device_that_is_not_there_is_an_error_unless_the_choice_was_left_open",
    "what cannot be compiled": "generate_compiled what_cannot_be_compiled_is_refused_with_the_reason",
    "a worker killed, two dvc repro, two trainers": "flows_stage a_stage_killed_by_a_signal_is_retried; flows_stage a_stage_that_another_process_runs_is_busy; training_exact two_trainers_of_one_phase_do_not_meet",
    "a clock that jumps": "machine_faults a_clock_that_jumps_changes_no_result_and_no_duration; training_parts the_newest_checkpoint_is_by_step_not_by_clock",
    "a folder of another version or place": "bad_data a_folder_of_work_may_be_moved; training_parts a_manifest_of_a_later_format_says_so",
    "names with spaces, quotes, dollars, a dash, 250 characters, a loop of links": "bad_data names_with_spaces_quotes_dashes_and_dollars_are_names; bad_recipe what_is_not_a_file_is_not_read",
    "no HOME, no terminal, 20 columns, NO_COLOR": "bad_inputs a_poor_terminal_gets_plain_words; progress a_pipe_gets_plain_lines_and_the_last_state",
    "a locale that is not UTF-8": "bad_inputs a_poor_terminal_gets_plain_words; generate_cli a_stdout_that_is_not_utf_8_does_not_end_the_command",
    "Ctrl-C in any stage": "machine_faults ctrl_c_leaves_no_half_output_and_the_next_run_ends_the_same; release_export an_export_that_is_interrupted_leaves_what_was_there",
    "a prompt that is empty, too long, of unknown characters": "generate_cli an_empty_prompt_starts_from_the_end_of_text; generate_cli a_prompt_beyond_the_context_says_what_is_kept; generate_cli half_a_surrogate_pair_is_no_character",
    "sampling out of range": "bad_model what_is_not_there_or_cannot_be_is_said; generate_sampling options_out_of_range_are_refused",
    "nothing to predict": "model_loss without_any_target_the_loss_and_its_gradients_are_zero_and_not_nan; evaluation an_empty_stream_is_refused",
    "a recipe that is an alias bomb, or large": "bad_recipe a_file_that_is_no_recipe_is_refused_with_its_line",
    "archives": "security no_code_runs_what_it_reads",
}  # fmt: skip

FAULTS = {
    "F01 kill -9 at a random step": "training_exact a_run_killed_at_random_moments_equals_the_straight_run; pipeline a_killed_dvc_repro_goes_on_to_the_bytes_of_a_straight_run",
    "F02 kill -9 inside a save": "training_parts a_save_that_fails_leaves_nothing_behind; training_faults fifty_kills_at_random_moments_end_with_the_bytes_of_a_straight_run",
    "F03 SIGTERM": "training_exact sigterm_finishes_the_step_saves_and_leaves",
    "F04 SIGINT": "machine_faults ctrl_c_once_saves_and_twice_leaves_at_once",
    "F05 a time limit": "training_faults a_time_limit_leaves_a_checkpoint_and_the_next_run_goes_on",
    "F06 SIGSTOP, SIGCONT": "machine_faults a_run_that_was_stopped_and_continued_ends_the_same_and_is_not_taken_for_hung; progress the_rate_forgets_a_pause",
    "F07 no memory": "training_faults a_device_without_memory_names_the_setting_that_helps",
    "F08 a sampler that fails": "training_faults a_sample_that_cannot_be_drawn_costs_no_training",
    "F09 a full disk while saving": "machine_faults a_disk_without_space_costs_checkpoints_and_the_last_one_is_an_error; training_faults a_checkpoint_that_cannot_be_written_costs_no_training",
    "F10 a full disk in a stage": "machine_faults a_disk_that_is_full_leaves_no_half_output_and_the_next_run_ends_the_same",
    "F11 a read-only run folder": "machine_faults a_read_only_folder_is_refused_before_training_starts; machine_faults a_file_in_the_place_of_a_folder_is_refused_before_training_starts",
    "F12, F13 a checkpoint with a flipped bit, cut, gone": "training_parts a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used",
    "F14 a manifest of a later format": "training_parts a_manifest_of_a_later_format_says_so",
    "F15 no checkpoint is whole": "training_parts where_no_checkpoint_is_whole_training_does_not_start_again",
    "F16 a loss that is not finite": "training_exact a_loss_that_is_not_finite_stops_before_the_weights_are_touched; training_faults too_many_bad_steps_in_a_row_stop_at_the_last_good_checkpoint",
    "F17 a gradient that is not finite": "training_faults a_step_that_is_not_finite_leaves_the_weights_alone_and_is_counted",
    "F18 a spike": "training_faults a_spike_is_reported_and_skipped_only_where_the_recipe_says_so; training_faults the_window_of_spikes_survives_a_stop",
    "F19 the scaler's state": "training_faults fp16_overflow_lowers_the_scale_and_its_state_survives_a_stop",
    "F20 the schedule": "training_exact a_run_that_stops_after_every_few_steps_equals_the_straight_run",
    "F21, F22, F23 moments, average, dropout": "training_exact a_resume_that_loses_a_part_of_the_state_is_seen; training_faults evaluating_drawing_and_saving_change_nothing",
    "F24 the order of the data": "tokens_mix the_samples_of_a_seed_never_change; training_exact a_run_that_stops_after_every_few_steps_equals_the_straight_run",
    "F25 a corpus that changed under a run": "tokens_mix shards_that_changed_since_the_mix_was_made_are_refused",
    "F26 settings that changed under a run": "training_exact a_run_of_other_settings_is_set_aside_and_named; training_faults going_on_under_other_settings_is_asked_for_and_on_the_record",
    "F27 another number of processes": "training_ranks a_run_goes_on_with_another_number_of_processes",
    "F28 two trainers": "training_exact two_trainers_of_one_phase_do_not_meet",
    "F29 two dvc repro": "flows_stage a_stage_that_another_process_runs_is_busy",
    "F30 kill -9 of the parent": "flows_supervise kill_9_of_the_parent_leaves_time_to_speak_and_write_a_checkpoint",
    "F31 DVC removes outputs before a run": "pipeline a_killed_dvc_repro_goes_on_to_the_bytes_of_a_straight_run",
    "F32, F33, F34 MLflow down, gone, slow": "registry_tracking the_follower_of_a_dead_server_says_so_once_and_the_record_is_caught_up_later; registry_tracking the_follower_goes_on_when_mlflow_comes_back; registry_tracking a_server_that_accepts_and_never_answers_holds_the_follower_for_seconds_only",
    "F35 a registry without the name": "registry_register an_address_that_leads_nowhere_says_what_there_is",
    "F36, F37 Prefect gone": "flows_services a_server_that_was_named_and_does_not_answer_is_an_error",
    "F38 a worker killed": "flows_stage a_stage_killed_by_a_signal_is_retried",
    "F39 a flow run twice": "flows_stage a_stage_runs_once_and_is_cached_after_that_and_runs_again_by_force; registry_register registering_twice_gives_one_version",
    "F40 a clock that jumps": "machine_faults a_clock_that_jumps_changes_no_result_and_no_duration",
    "F41 a download that breaks off": "data_readers a_broken_stream_goes_on_where_it_broke_and_backs_off; data_shards a_download_broken_off_goes_on_at_the_row_and_books_each_row_once",
    "F42 no GPU": "machine_faults a_device_that_is_not_there_is_an_error_unless_the_choice_was_left_open",
    "F43 an export interrupted or wrong": "release_export an_export_that_is_interrupted_leaves_what_was_there; release_export a_conversion_that_changes_the_logits_is_not_exported",
    "F44 a step that hangs": "machine_faults a_step_that_hangs_ends_with_its_stacks_and_the_next_run_goes_on",
}  # fmt: skip


@pytest.mark.parametrize("row", [*BAD_INPUTS, *FAULTS])
def test_every_row_has_its_tests(row: str) -> None:
    for entry in (BAD_INPUTS | FAULTS)[row].split("; "):
        file, _, test = entry.partition(" ")
        tree = ast.parse((ROOT / f"tests/test_{file}.py").read_text("utf-8"))
        there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert f"test_{test}" in there, entry


POOR = [
    {"TERM": "dumb", "COLUMNS": "20", "NO_COLOR": "1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
]


@pytest.mark.parametrize("terminal", POOR, ids=["dumb", "ascii"])
@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_poor_terminal_gets_plain_words(
    tmp_path: Path, command: str, terminal: dict[str, str]
) -> None:
    """Nor is there a home, and whoever listens is a pipe."""
    root = project(tmp_path / "ünï")
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    run = [sys.executable, "-c", "from tasks.cli import main; main()", command]

    def answer() -> int:
        done = subprocess.run(
            run, cwd=root, env=kept | terminal | {"PYTHONPATH": str(ROOT)}, capture_output=True,
            check=False,
        )  # fmt: skip
        assert b"\x1b" not in done.stdout + done.stderr and b"Traceback" not in done.stderr
        return done.returncode

    assert answer() == 0
    change(root, "name: tiny", "name: Ünï")
    assert answer() == 2
