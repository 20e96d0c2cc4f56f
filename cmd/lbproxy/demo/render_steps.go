package demo

import (
	"fmt"
	"strings"
	"time"
)

// stepsHead is what stands above the steps.
func stepsHead(r *Report, s Style) string {
	first := []string{pad("", markWidth+stepWidth)}
	second := []string{pad(" step", markWidth+stepWidth)}
	for _, run := range r.shown() {
		first = append(first, pad(titles[run.Mode], stepPanel))
		second = append(second, pad(padLeft("new", 5)+padLeft("held", 7)+padLeft("failed", 8)+padLeft("seen", 9), stepPanel))
	}
	return "\n" + s.bold("Now the Services change, while all three clients keep connecting (new) and using what they have (held)") + "\n" +
		s.dim(" failed: of both; seen: until the last client noticed, over both families") + "\n\n" +
		s.bold(trim(strings.Join(first, " │ "))) + "\n" + s.dim(trim(strings.Join(second, " │ "))) + "\n"
}

// stepLine is step i of all runs.
func stepLine(r *Report, i int, s Style) string {
	mark := pad("", markWidth)
	var panels, problems []string
	name := ""
	for _, run := range r.shown() {
		step := run.Steps[i]
		name = step.Step
		counts := padLeft(fmt.Sprint(step.New), 5) + padLeft(fmt.Sprint(step.Held), 7)
		failed := padLeft(fmt.Sprint(step.Failed), 8)
		if len(step.Problems) > 0 {
			mark = " " + s.red("✗") + " "
			failed = s.red(failed)
		} else {
			failed = s.green(failed)
		}
		rest := padLeft(effect(step), 9)
		if step.Note != "" {
			rest = rest + " " + s.dim(step.Note)
		}
		panels = append(panels, pad(counts+failed+rest, stepPanel))
		problems = append(problems, problemLines(run.Mode, "", step.Problems, s))
	}
	line := mark + pad(name, stepWidth) + s.dim(" │ ") + strings.Join(panels, s.dim(" │ "))
	return trim(line) + "\n" + strings.Join(problems, "")
}

func effect(s StepResult) string {
	if s.Effect == 0 {
		return ""
	}
	return s.Effect.Round(time.Millisecond).String()
}
