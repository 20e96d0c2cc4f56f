package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/test/lab"
)

// dwell is how long connections run in every step, at least.
const dwell = 800 * time.Millisecond

// step is a change while connections run.
type step struct {
	name string
	// do makes the change and waits until every client has seen it.
	do func(context.Context, *stage, *StepResult) error
	// everything is to be dialed after it.
	everything bool
}

var steps = []step{
	{name: "web: 2 → 3 backends", do: addBackend("web", "web-3")},
	{name: "web-1 is terminating", do: terminateBackend("web", "web-1")},
	{name: "web-1 is gone", do: func(_ context.Context, s *stage, _ *StepResult) error {
		return s.edit("web.yaml", removePod("web-1"))
	}},
	{name: "api: 2 → 0 backends", do: drain, everything: true},
	{name: "api: back to 2", do: refill},
	{name: "agent killed (SIGKILL)", do: killAgent, everything: true},
	{name: "agent started again", do: restartAgent, everything: true},
	{name: "web-1 comes back", do: addBackend("web", "web-1"), everything: true},
}

// run makes one step. Problems are in the result; an error means that the laboratory failed.
func (s *stage) run(ctx context.Context, st step) (StepResult, error) {
	result := StepResult{Step: st.name}
	begin := time.Now()
	before, err := s.readLoads()
	if err != nil {
		return result, err
	}
	if err := st.do(ctx, s, &result); err != nil {
		return result, fmt.Errorf("%s: %w", st.name, err)
	}
	if st.everything {
		problems, err := s.sweep(ctx)
		if err != nil {
			return result, err
		}
		result.Problems = append(result.Problems, problems...)
		result.Failed += len(problems)
	}
	select {
	case <-ctx.Done():
		return result, ctx.Err()
	case <-time.After(time.Until(begin.Add(dwell))):
	}
	after, err := s.readLoads()
	if err != nil {
		return result, err
	}
	addLoads(&result, before, after)
	if s.agent != nil {
		select {
		case <-s.agent.Done():
			result.Problems = append(result.Problems, "the agent has ended: "+lastWords(s.agent.Output()))
		default:
		}
	}
	return result, nil
}

func addBackend(service, name string) func(context.Context, *stage, *StepResult) error {
	return func(ctx context.Context, s *stage, result *StepResult) error {
		s.now[service] = append(s.now[service], name)
		return s.change(ctx, result, service, addPod(name), sight{
			want:      func(a lab.Answer) bool { return a.Backend == name },
			tolerable: answered, times: 1,
		})
	}
}

// terminateBackend waits until so many connections in a row are answered by others that it cannot be luck.
func terminateBackend(service, name string) func(context.Context, *stage, *StepResult) error {
	return func(ctx context.Context, s *stage, result *StepResult) error {
		rest := removed(s.now[service], name)
		s.now[service] = rest
		return s.change(ctx, result, service, terminatePod(name), sight{
			want:      func(a lab.Answer) bool { return answered(a) && a.Backend != name },
			tolerable: answered, times: 30,
		})
	}
}

func drain(ctx context.Context, s *stage, result *StepResult) error {
	s.now[drained] = nil
	return s.change(ctx, result, drained, removeAllPods, sight{want: lab.Answer.Refused, tolerable: answeredOrRefused, times: 5})
}

func refill(ctx context.Context, s *stage, result *StepResult) error {
	s.now[drained] = firstBackends()[drained]
	refillSlice := func(slice *discovery.EndpointSlice) {
		for _, name := range s.now[drained] {
			addPod(name)(slice)
		}
	}
	return s.change(ctx, result, drained, refillSlice, sight{want: answered, tolerable: answeredOrRefused, times: 5})
}

func killAgent(_ context.Context, s *stage, _ *StepResult) error {
	agent := s.agent
	s.agent = nil
	return agent.Kill()
}

// restartAgent expects that the agent finds everything as it has to be.
func restartAgent(ctx context.Context, s *stage, result *StepResult) error {
	begin := time.Now()
	err := s.startAgent(ctx)
	result.Effect = time.Since(begin)
	var said *agentError
	if errors.As(err, &said) {
		result.Problems = append(result.Problems, "the agent does not come back: "+said.said)
		return nil
	}
	if err != nil {
		return err
	}
	r, _ := find(s.agent.Output(), isFirstSync)
	if r.Writes == nil {
		result.Problems = append(result.Problems, "the agent does not say how much it wrote")
		return nil
	}
	result.Note = fmt.Sprintf("%d writes", *r.Writes)
	if *r.Writes != 0 {
		result.Problems = append(result.Problems, fmt.Sprintf("the agent wrote %d entries, though nothing had changed", *r.Writes))
	}
	return nil
}
