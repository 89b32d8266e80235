"""Operations counted in a compiled program's text."""

from experiments import launches

TEXT = """HloModule jit_step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%fused_one (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %add = f32[4]{0} add(%p, %p)
}

%norms (q: (f32[4], f32[4])) -> f32[] {
  %q = (f32[4]{0}, f32[4]{0}) parameter(0)
  %g = f32[4]{0} get-tuple-element(%q), index=0
  %f.1 = f32[] fusion(%g), kind=kInput, calls=%fused_one
  ROOT %f.2 = f32[] fusion(%f.1), kind=kLoop, calls=%fused_one
}

%zeros (r: (f32[4], f32[4])) -> f32[] {
  %r = (f32[4]{0}, f32[4]{0}) parameter(0)
  ROOT %c = f32[] constant(0)
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %y = (f32[4]{0}, u8[8]{0}) custom-call(%s), custom_call_target="__cublas$gemm"
  ROOT %t = (s32[], f32[4]{0}) tuple(%s, %y)
}

%condition (s: (s32[], f32[4])) -> pred[] {
  %s = (s32[], f32[4]{0}) parameter(0)
  ROOT %l = pred[] fusion(%s), kind=kLoop, calls=%fused_one
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0), metadata={op_name="x"}
  %copy.1 = f32[4]{0} copy(%x)
  %fusion.3 = f32[4]{0:T(8)} fusion(%copy.1), kind=kLoop, calls=%fused_one
  %w = (s32[], f32[4]{0}) while(%x), condition=%condition, body=%body
  %n = (f32[], f32[], f32[], f32[], f32[], /*index=5*/f32[]) conditional(%x, %w, %w), branch_computations={%zeros, %norms}
  ROOT %b = f32[4]{0} bitcast(%fusion.3)
}
"""


def test_what_runs_is_counted():
    """What a loop repeats once, what hangs on a condition by itself, what is no work not at all."""
    assert launches.launches(TEXT) == {"all": 3, "conditional": 2, "copy": 1, "fusion": 1, "custom-call": 1}


def test_branches_of_a_truth():
    text = TEXT.replace("branch_computations={%zeros, %norms}", "true_computation=%norms, false_computation=%zeros")
    assert launches.launches(text)["conditional"] == 2
