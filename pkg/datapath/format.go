package datapath

import (
	"fmt"
	"io"
	"strings"
)

// String names the clients: "nobody", "everyone" or a list such as "node+outside".
func (c Clients) String() string {
	switch c {
	case FromNobody:
		return "nobody"
	case FromEveryone:
		return "everyone"
	}
	var names []string
	for _, k := range []struct {
		bit  Clients
		name string
	}{{FromPods, "pods"}, {FromNode, "node"}, {FromOutside, "outside"}} {
		if c&k.bit != 0 {
			names = append(names, k.name)
		}
	}
	return strings.Join(names, "+")
}

// String returns the address, followed by " local" for a backend on this node.
func (b Backend) String() string {
	if b.Local {
		return b.Addr.String() + " local"
	}
	return b.Addr.String()
}

// Format writes s for a person to read, one frontend or backend set a line. Equal Services have equal texts.
func Format(w io.Writer, s *Service) error {
	var b strings.Builder
	fmt.Fprintf(&b, "service %s\n", s.Name)
	for i := range s.Ports {
		formatPort(&b, &s.Ports[i])
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write service %s: %w", s.Name, err)
	}
	return nil
}

func formatPort(b *strings.Builder, p *Port) {
	family := "IPv4"
	if p.IPv6 {
		family = "IPv6"
	}
	name := p.Name
	if name == "" {
		name = `""`
	}
	fmt.Fprintf(b, "  port %s %s %s", name, p.Protocol, family)
	if p.Affinity > 0 {
		fmt.Fprintf(b, " affinity %s", p.Affinity)
	}
	b.WriteByte('\n')
	for i, set := range p.Sets {
		fmt.Fprintf(b, "    set %d: %s\n", i, formatSet(set))
	}
	for i := range p.Frontends {
		f := &p.Frontends[i]
		fmt.Fprintf(b, "    %s %s: inside %s, outside %s, masquerade %s", f.Kind, p.FrontendAddr(f).AddrPort,
			formatRoute(p, f.Inside), formatRoute(p, f.Outside), f.Masquerade)
		if len(f.Sources) > 0 {
			fmt.Fprintf(b, ", sources %s", joinStrings(f.Sources))
		}
		b.WriteByte('\n')
	}
}

func formatSet(set []Backend) string {
	if len(set) == 0 {
		return "empty"
	}
	return joinStrings(set)
}

// formatRoute names the set, or what the client gets where there is no backend.
func formatRoute(p *Port, r Route) string {
	if r.Set < 0 || r.Set >= len(p.Sets) {
		return fmt.Sprintf("set %d (missing)", r.Set)
	}
	if len(p.Sets[r.Set]) == 0 {
		return r.Empty.String()
	}
	return fmt.Sprintf("set %d", r.Set)
}

func joinStrings[T fmt.Stringer](values []T) string {
	s := make([]string, len(values))
	for i, v := range values {
		s[i] = v.String()
	}
	return strings.Join(s, ", ")
}
