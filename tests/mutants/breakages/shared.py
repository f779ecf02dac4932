"""Breakages of what two UNets share, and of what a process says and writes at its end."""

from .rows import of

SHARED = [
    *of(
        "eqdiff/drawing/loader.py",
        "test_shared",
        (
            "a fused LoRA reaches the reference",
            "self._carried.own_reference()",
            "pass",
            "a_lora_that_is_fused_and_taken_off_does_not_reach_it",
        ),
    ),
    *of(
        "eqdiff/drawing/carried.py",
        "test_shared",
        (
            "a schedule keeps the reference that was shared",
            "key = (here, id(unet), ",
            "key = (here, ",
            "a_lora_that_is_fused_through_another_pipeline_of_the_same_parts_is_seen",
        ),
        (
            "layers that move by themselves are shared",
            "if layers_change_by_themselves(model.unet):",
            "if False:",
            "weights_that_are_stored_in_8_bits_are_its_own_in_the_precision_of_the_sums",
        ),
        (
            "changed weights are drawn with",
            "not changed(self.model.reference_unet, self.looks),",
            "True,",
            "other_ways_to_change_its_weights_are_refused",
        ),
    ),
    *of(
        "eqdiff/base/shared.py",
        "test_shared",
        (
            "only the first weight is looked at",
            "for weight in module.parameters() if not weight.is_meta]",
            "for weight in list(module.parameters())[:1]]",
            "a_look_sees_a_change_of_one_weight_and_not_its_rounding",
        ),
    ),
    *of(
        "eqdiff/files.py",
        "test_files",
        (
            "tensors that share memory are written as they are",
            "tensor.clone() if place in places else tensor",
            "tensor",
            "tensors_may_share_memory_and_lie_in_it_in_any_order",
        ),
    ),
    *of(
        "eqdiff/process/streams.py",
        "test_signals",
        (
            "the last line is two writes",
            'sys.stderr.write(f"{text}\\n")',
            "print(text, file=sys.stderr)",
            "the_last_line_is_one_write_so_that_two_processes_do_not_mix_theirs",
        ),
    ),
]
