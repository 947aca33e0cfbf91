"""Replies that are not in the grammar, each with the abstention that it must become.

R stands for a reasoning, M and O for the answers in motion and overall; BASES says what is put there.
"""

BASES = (
    {"R": "both move", "M": "first", "O": "tie"},
    {"R": "first: it freezes.\nsecond: it blurs, 3 > 2.", "M": "second", "O": "second"},
    {"R": "第一个更好 ✓ (answer: first)", "M": "tie", "O": "first"},
)
GOOD = "<reasoning>R</reasoning><answer>motion: M overall: O</answer>"
_LIST = "motion: M overall: O"


def _answer(listed: str) -> str:
    return f"<reasoning>R</reasoning><answer>{listed}</answer>"


RETAKE: list[tuple[str, str]] = [
    # nothing
    ("", "empty"),
    (" \n\t\u00a0\u3000 ", "empty"),
    # prose, and other people's formats
    ("The first is better. R", "missing_tag"),
    ("M", "missing_tag"),
    (_LIST, "missing_tag"),
    ("R\n\nmotion: M\noverall: O", "missing_tag"),
    ('{"reasoning": "R", "motion": "M", "overall": "O"}', "missing_tag"),
    ("```xml\nR\n```", "missing_tag"),
    ("<think>R</think><answer>Video 1 is better</answer>", "missing_tag"),
    ("I cannot help with that. R", "missing_tag"),
    # tags that are not there
    (f"<answer>{_LIST}</answer>", "missing_tag"),
    ("<reasoning>R</reasoning>", "missing_tag"),
    (GOOD.removesuffix("</answer>"), "missing_tag"),
    (GOOD.replace("</reasoning>", ""), "missing_tag"),
    (GOOD.removeprefix("<reasoning>"), "missing_tag"),
    (GOOD.replace("<answer>", ""), "missing_tag"),
    (GOOD.replace("<answer>", "<answers>").replace("</answer>", "</answers>"), "missing_tag"),
    (GOOD.replace("<answer>", "<ANSWER>"), "missing_tag"),
    (GOOD.replace("<answer>", "< answer >"), "missing_tag"),
    (GOOD.replace("<answer>", '<answer id="1">'), "missing_tag"),
    (GOOD.replace("</answer>", "</answer >"), "missing_tag"),
    (GOOD.replace("<", "\uff1c").replace(">", "\uff1e"), "missing_tag"),
    (GOOD.replace("<", "&lt;").replace(">", "&gt;"), "missing_tag"),
    (GOOD.replace("answer>", "answ\u200ber>"), "missing_tag"),
    (GOOD[:20], "missing_tag"),
    # tags that are there twice
    (GOOD + GOOD, "duplicate_tag"),
    (GOOD + f"<answer>{_LIST}</answer>", "duplicate_tag"),
    (GOOD + "</answer>", "duplicate_tag"),
    ("<reasoning>" + GOOD, "duplicate_tag"),
    (GOOD.replace("R", "R</reasoning><answer>motion: first overall: first</answer>"), "duplicate_tag"),
    (GOOD.replace("R", "R <answer>"), "duplicate_tag"),
    (_answer(f"{_LIST}<answer>{_LIST}</answer>"), "duplicate_tag"),
    # another order
    (f"<answer>{_LIST}</answer><reasoning>R</reasoning>", "tag_order"),
    (f"</reasoning>R<reasoning><answer>{_LIST}</answer>", "tag_order"),
    (f"<reasoning>R</reasoning></answer>{_LIST}<answer>", "tag_order"),
    (f"<reasoning>R<answer></reasoning>{_LIST}</answer>", "tag_order"),
    (f"<reasoning>R<answer>{_LIST}</answer></reasoning>", "tag_order"),
    # text outside the blocks
    ("Sure! " + GOOD, "text_outside"),
    (GOOD + ".", "text_outside"),
    (GOOD + "\n\nI hope this helps.", "text_outside"),
    (GOOD + "<|im_end|>", "text_outside"),
    (GOOD.replace("<answer>", "so <answer>"), "text_outside"),
    (f"```\n{GOOD}\n```", "text_outside"),
    (f"**{GOOD}**", "text_outside"),
    ("\ufeff" + GOOD, "text_outside"),
    (GOOD + "\x00", "text_outside"),
    ("\u200b" + GOOD, "text_outside"),
    # an answer that is no list
    (_answer("motion M overall: O"), "malformed_answer"),
    (_answer(": M overall: O"), "malformed_answer"),
    (_answer("motion: M overall:"), "malformed_answer"),
    (_answer("M, O"), "malformed_answer"),
    (_answer("both are equal"), "malformed_answer"),
    (_answer("motion: : M overall: O"), "malformed_answer"),
    (_answer("motion: M: overall: O"), "malformed_answer"),
    (_answer("motion: M\noverall"), "malformed_answer"),
    (_answer("{motion M}"), "malformed_answer"),
    (_answer("motion=M overall=O"), "malformed_answer"),
    (_answer("Video 1 is better"), "malformed_answer"),
    (_answer("motion\uff1aM overall\uff1aO"), "malformed_answer"),
    # dimensions
    (_answer("quality: M overall: O"), "unknown_dimension"),
    (_answer("Motion: M overall: O"), "unknown_dimension"),
    (_answer("- motion: M - overall: O"), "malformed_answer"),
    (_answer('"motion": "M", "overall": "O"'), "unknown_dimension"),
    (_answer("motion: M overall: O text_alignment: O"), "unknown_dimension"),
    (_answer("m\u043etion: M overall: O"), "unknown_dimension"),  # with a Cyrillic o
    (_answer("1.motion: M 2.overall: O"), "unknown_dimension"),
    (_answer("motion: M motion: M overall: O"), "duplicate_dimension"),
    (_answer("motion: M overall: O overall: tie"), "duplicate_dimension"),
    (_answer("overall: O motion: M overall: O"), "duplicate_dimension"),
    (_answer("motion: M"), "missing_dimension"),
    (_answer("overall: O"), "missing_dimension"),
    (_answer(""), "missing_dimension"),
    (_answer(" \n "), "missing_dimension"),
    # other words than ours
    (_answer("motion: left overall: O"), "unknown_word"),
    (_answer("motion: M, overall: O"), "unknown_word"),
    (_answer("motion: M overall: O."), "unknown_word"),
    (_answer("motion: First overall: O"), "unknown_word"),
    (_answer("motion: SECOND overall: O"), "unknown_word"),
    (_answer("motion: 1 overall: 2"), "unknown_word"),
    (_answer("motion: A overall: B"), "unknown_word"),
    (_answer("motion: both overall: O"), "unknown_word"),
    (_answer("motion: first|second|tie overall: first|second|tie"), "unknown_word"),
    (_answer("motion: first/second overall: O"), "unknown_word"),
    (_answer("motion: **M** overall: O"), "unknown_word"),
    (_answer("motion: 'M' overall: O"), "unknown_word"),
    (_answer("motion: none overall: O"), "unknown_word"),
    (_answer("motion: fir\u200bst overall: O"), "unknown_word"),
    (_answer("motion: \uff46\uff49\uff52\uff53\uff54 overall: O"), "unknown_word"),
]

# UnifiedReward-Think in its own form, in the layouts of its Qwen3-VL and its Qwen2.5-VL models
THOUGHT = """\
<think>
1. Semantic consistency:
    Video 1 (9/10) - It shows the red box of the caption on a plain ground;
    Video 2 (6/10) - The box is there, but it turns orange.
2. Temporal coherence:
    Video 1 (7/10) - It glides evenly;
    Video 2 (7/10) - Likewise.
3. Authenticity:
    Video 1 (5/10) - Its edges swim;
    Video 2 (8.5/10) - Sharp throughout.
Total score:
Video 1: 9+7+5=21
Video 2: 6+7+8.5=21.5
</think>
<answer>Video 2 is better</answer>"""
ONE_LINE = (
    "<think>\n1. Semantic consistency: Video 1 (4/10) - no ring; Video 2 (8/10) - a ring.\n"
    "2. Temporal coherence: Video 1 (6/10) - smooth; Video 2 (5/10) - it jumps once.\n"
    "3. Authenticity: Video 1 (7/10) - flat; Video 2 (7/10) - flat.\n"
    "4. Camera stability: Video 1 (9/10) - still; Video 2 (3/10) - shakes.\n"
    "Total score:\nVideo 1: 4+6+7+9=26\nVideo 2: 8+5+7+3=23\n</think>\n<answer>Video 1 is better</answer>"
)

# of all four dimensions
UNIFIED_REWARD: list[tuple[str, str]] = [
    ("", "empty"),
    ("Video 1 is better", "missing_tag"),
    ("Video 2 is better because it is sharper.", "missing_tag"),
    ("<answer>Video 1 is better</answer>", "missing_tag"),  # a server that keeps the thinking back
    (THOUGHT.replace("<think>", ""), "missing_tag"),
    (THOUGHT.removesuffix("</answer>"), "missing_tag"),
    (THOUGHT.replace("think>", "thinking>"), "missing_tag"),
    ("<reasoning>x</reasoning><answer>overall: first</answer>", "missing_tag"),
    ('{"winner": "Video 1"}', "missing_tag"),
    (THOUGHT + ONE_LINE, "duplicate_tag"),
    (THOUGHT + "\n<answer>Video 1 is better</answer>", "duplicate_tag"),
    (THOUGHT.replace("Likewise", "<answer>Video 1 is better</answer>"), "duplicate_tag"),
    ("<answer>Video 1 is better</answer><think>1.</think>", "tag_order"),
    ("Here it is: " + THOUGHT, "text_outside"),
    (THOUGHT + " I am sure.", "text_outside"),
    (THOUGHT.replace("<answer>", "Thus <answer>"), "text_outside"),
    (THOUGHT.replace("Video 2 is better", ""), "malformed_answer"),
    (THOUGHT.replace("Video 2 is better", "Video 2"), "unknown_word"),
    (THOUGHT.replace("Video 2 is better", "Video 3 is better"), "unknown_word"),
    (THOUGHT.replace("Video 2 is better", "Video 2 is better."), "unknown_word"),
    (THOUGHT.replace("Video 2 is better", "video 2 is better"), "unknown_word"),
    (THOUGHT.replace("Video 2 is better", "Video 1 is better\nVideo 2 is better"), "unknown_word"),
    (THOUGHT.replace("Video 2 is better", "Video 1 is not better"), "unknown_word"),
    (THOUGHT.replace("Video 2 is better", "Image 2 is better"), "unknown_word"),
    (THOUGHT.replace("Video 2 is better", "overall: second"), "unknown_word"),
    (THOUGHT.replace("Video 2 is better", "Video 1/2 is better"), "unknown_word"),
    (THOUGHT.replace("2. Temporal coherence", "2. Motion"), "missing_dimension"),
    (THOUGHT.replace("3. Authenticity:", "3. authenticity:"), "missing_dimension"),
    ("<think></think><answer>Video 1 is better</answer>", "missing_dimension"),
    ("<think>good</think><answer>Both videos are equally good</answer>", "missing_dimension"),
    (
        THOUGHT.replace("Total score:", "4. Authenticity:\n Video 1 (1/10) Video 2 (2/10)"),
        "duplicate_dimension",
    ),
    (THOUGHT.replace("(7/10) - Likewise", "- Likewise"), "malformed_answer"),
    (THOUGHT.replace("(7/10) - Likewise", "(7) - Likewise"), "malformed_answer"),
    (THOUGHT.replace("(9/10)", "(11/10)"), "malformed_answer"),
    (THOUGHT.replace("(9/10)", "(0/10)"), "malformed_answer"),
    (THOUGHT.replace("(9/10)", "(9/100)"), "malformed_answer"),
    (THOUGHT.replace("(9/10)", "(nine/10)"), "malformed_answer"),
    (THOUGHT.replace("(9/10)", "(-9/10)"), "malformed_answer"),
    (THOUGHT.replace("Video 2 (6/10)", "Video 1 (6/10)"), "malformed_answer"),
    (THOUGHT.replace("it turns orange", "Video 2 (3/10)"), "malformed_answer"),
]
