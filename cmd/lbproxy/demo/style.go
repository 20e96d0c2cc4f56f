package demo

import (
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Style says whether text has colours.
type Style bool

// StyleOf returns the style for a file: colours on a terminal, unless NO_COLOR is set.
func StyleOf(f *os.File) Style {
	return Style(isTerminal(f) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (s Style) with(code, text string) string {
	if !s || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s Style) bold(text string) string  { return s.with("1", text) }
func (s Style) dim(text string) string   { return s.with("2", text) }
func (s Style) red(text string) string   { return s.with("31", text) }
func (s Style) green(text string) string { return s.with("32", text) }

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

// width returns how many columns a text takes.
func width(text string) int { return utf8.RuneCountInString(escapes.ReplaceAllString(text, "")) }

func pad(text string, n int) string { return text + strings.Repeat(" ", max(0, n-width(text))) }

func padLeft(text string, n int) string { return strings.Repeat(" ", max(0, n-width(text))) + text }

func trim(text string) string { return strings.TrimRight(text, " ") }
