package demo

import (
	"fmt"
	"os"
)

// progress is a line on a terminal that says what is being done, and disappears.
type progress struct{ f *os.File }

// newProgress returns a progress that says nothing where f is not a terminal.
func newProgress(f *os.File) progress {
	if f == nil || !isTerminal(f) {
		return progress{}
	}
	return progress{f}
}

func (p progress) say(format string, args ...any) {
	if p.f != nil {
		fmt.Fprintf(p.f, "\r\x1b[K%s…", fmt.Sprintf(format, args...))
	}
}

func (p progress) clear() {
	if p.f != nil {
		fmt.Fprint(p.f, "\r\x1b[K")
	}
}
