package demo

import (
	"fmt"
	"net/netip"
	"strings"
)

// Everything here is a function from results to text of at most 110 columns.

// The widths of the columns. A panel is what belongs to one proxy mode.
const (
	clientWidth  = 7
	answersWidth = 21
	sourceWidth  = 21
	ratioWidth   = 5
	panelWidth   = answersWidth + sourceWidth + ratioWidth
	stepWidth    = 25
	stepPanel    = 38
	markWidth    = 3
)

var titles = map[string]string{
	"auto":     "auto: eBPF sockets, nftables behind",
	"ebpf":     "ebpf: eBPF sockets, nftables behind",
	"nftables": "nftables alone",
}

// Text writes the whole report.
func Text(r *Report, s Style) string {
	var b strings.Builder
	b.WriteString(intro(s))
	b.WriteString(connections(r, s))
	if r.hasSteps() {
		b.WriteString(stepsHead(r, s))
		for i := range r.shown()[0].Steps {
			b.WriteString(stepLine(r, i, s))
		}
	}
	return b.String()
}

// intro says what the world is made of.
func intro(s Style) string {
	var on [2]strings.Builder
	for _, p := range pods {
		b := &on[0]
		if p.node == "node2" {
			b = &on[1]
		}
		name := p.name
		if p.service == "" {
			name = "and the client " + podAddr(p.name, false).String()
		}
		b.WriteString(" " + name)
	}
	return fmt.Sprintf("%s\n\n   node     172.18.0.11    pods%s\n   node2    172.18.0.12    pods%s\n   outside  172.18.0.100   a client that reaches the Services through node\n",
		s.bold("The Services of examples/, dialed for real in a world of network namespaces, over IPv4 and IPv6"), on[0].String(), on[1].String())
}

// shown are the runs with results.
func (r *Report) shown() []ModeReport {
	var runs []ModeReport
	for _, run := range r.Runs {
		if run.Missing == "" {
			runs = append(runs, run)
		}
	}
	return runs
}

func (r *Report) hasSteps() bool {
	runs := r.shown()
	return len(runs) > 0 && len(runs[0].Steps) > 0
}

// connections is the table of who reached whom.
func connections(r *Report, s Style) string {
	var b strings.Builder
	runs := r.shown()
	b.WriteByte('\n')
	head := []string{pad("", markWidth+clientWidth)}
	names := []string{pad(" client", markWidth+clientWidth)}
	for _, run := range runs {
		head = append(head, pad(titles[run.Mode], panelWidth))
		names = append(names, pad("answered by", answersWidth)+pad("source they saw", sourceWidth)+padLeft("time", ratioWidth))
	}
	fmt.Fprintln(&b, s.bold(trim(strings.Join(head, " │ "))))
	fmt.Fprintln(&b, s.dim(trim(strings.Join(names, " │ "))))
	var last Cell
	for i, c := range runs[0].Cells {
		if !sameFrontend(c, last) {
			b.WriteString(frontendLine(c, s))
		}
		last = c
		var cells []Cell
		for _, run := range runs {
			cells = append(cells, run.Cells[i])
		}
		b.WriteString(cellLine(cells, s))
		for j, c := range cells {
			b.WriteString(problemLines(runs[j].Mode, c.Client+" to ", c.Problems, s))
		}
	}
	fmt.Fprintln(&b, s.dim("\n time: median until connected (TCP) or answered (UDP), as a multiple of dialing the pod itself; ✗ is wrong"))
	for _, run := range r.Runs {
		if run.Missing != "" {
			fmt.Fprintf(&b, " %s is missing, because this machine cannot do it: %s\n", run.Mode, run.Missing)
		}
		if run.Note != "" {
			fmt.Fprintf(&b, " %s: %s\n", run.Mode, run.Note)
		}
	}
	return b.String()
}

func sameFrontend(a, b Cell) bool {
	return a.Service == b.Service && a.IPv4 == b.IPv4 && a.Network == b.Network
}

func frontendLine(c Cell, s Style) string {
	return trim(" "+s.bold(pad(c.Service, 9))+pad(c.Kind, 14)+pad(strings.ToUpper(c.Network), 5)+
		pad(c.IPv4.String(), 20)+pad(c.IPv6.String(), 26)+" "+s.dim(c.Policy)) + "\n"
}

// cellLine is one client; cells are those of all runs.
func cellLine(cells []Cell, s Style) string {
	mark := pad("", markWidth)
	var panels []string
	for i, c := range cells {
		answers := pad(answers(c), answersWidth)
		if len(c.Problems) > 0 {
			mark = " " + s.red("✗") + " "
			answers = s.red(answers)
		}
		panel := answers + pad(source(c), sourceWidth) + padLeft(ratio(c.Ratio), ratioWidth)
		if i == len(cells)-1 {
			panel = trim(panel)
		}
		panels = append(panels, panel)
	}
	return mark + pad(cells[0].Client, clientWidth) + s.dim(" │ ") + strings.Join(panels, s.dim(" │ ")) + "\n"
}

func problemLines(mode, what string, problems []string, s Style) string {
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&b, " %s %s: %s%s\n", s.red("✗"), mode, what, p)
	}
	return b.String()
}

// answers says who answered how often.
func answers(c Cell) string {
	var list []string
	answered := 0
	for _, name := range sortedKeys(c.Answers) {
		list = append(list, fmt.Sprintf("%s %d", name, c.Answers[name]))
		answered += c.Answers[name]
	}
	if c.Refused > 0 {
		list = append(list, fmt.Sprintf("refused %d", c.Refused))
	}
	if failed := c.Made - c.Refused - answered; failed > 0 {
		list = append(list, fmt.Sprintf("failed %d", failed))
	}
	return strings.Join(list, "  ")
}

// source says whose addresses the backends saw, and which: the IPv4 one stands for both families.
func source(c Cell) string {
	owners := map[string]bool{}
	var addrs []string
	for _, text := range sortedKeys(c.Sources) {
		a, _ := netip.ParseAddr(text)
		owners[ownerOf(a)] = true
		if a.Is4() {
			addrs = append(addrs, text)
		}
	}
	list := strings.Join(sortedKeys(owners), ", ")
	switch {
	case len(owners) != 1 || len(addrs) == 0:
		return list
	case len(addrs) == 1:
		return list + " " + addrs[0]
	}
	return fmt.Sprintf("%s, %d addresses", list, len(addrs))
}

func ratio(r float64) string {
	if r == 0 {
		return ""
	}
	return fmt.Sprintf("×%.2f", r)
}
