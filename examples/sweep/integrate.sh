# One point of the sweep: reads the rule and the number of steps from GREY_ITEM and writes error, rule, steps and value.
set -eu
rule=$(printf '%s' "$GREY_ITEM" | sed -n 's/.*"rule":"\([a-z]*\)".*/\1/p')
steps=$(printf '%s' "$GREY_ITEM" | sed -n 's/.*"steps":\([0-9]*\).*/\1/p')
awk -v rule="$rule" -v steps="$steps" '
function f(x) { return 4 / (1 + x * x) }
BEGIN {
    if (steps < 1 || (rule != "left" && rule != "midpoint" && rule != "trapezoid")) exit 1
    width = 1 / steps
    for (i = 0; i < steps; i++) {
        x = i * width
        if (rule == "left") sum += f(x)
        if (rule == "midpoint") sum += f(x + width / 2)
        if (rule == "trapezoid") sum += (f(x) + f(x + width)) / 2
    }
    error = sum * width - atan2(0, -1)
    if (error < 0) error = -error
    printf "%.3e\t%s\t%d\t%.12f\n", error, rule, steps, sum * width
}' >"$GREY_OUT/$GREY_INDEX.tsv"
