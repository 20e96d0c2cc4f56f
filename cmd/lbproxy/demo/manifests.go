package demo

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/examples"
)

// copyManifests writes the examples to a directory.
func copyManifests(dir string) error {
	names, err := fs.Glob(examples.Manifests, "*.yaml")
	if err != nil {
		return fmt.Errorf("list examples: %w", err)
	}
	for _, name := range names {
		data, err := fs.ReadFile(examples.Manifests, name)
		if err != nil {
			return fmt.Errorf("read example %s: %w", name, err)
		}
		if err := replaceFile(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile changes a file in one step, so that the agent never reads half of it.
func replaceFile(path string, data []byte) error {
	next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".next")
	err := os.WriteFile(next, data, 0o644)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return fmt.Errorf("write manifest %s: %w", filepath.Base(path), err)
	}
	return nil
}

// editSlices changes the EndpointSlices of a manifest and leaves its other objects as they are.
func editSlices(manifest []byte, edit func(*discovery.EndpointSlice)) ([]byte, error) {
	documents := bytes.Split(manifest, []byte("\n---\n"))
	for i, doc := range documents {
		var s discovery.EndpointSlice
		if err := yaml.Unmarshal(doc, &s); err != nil {
			return nil, fmt.Errorf("decode document %d: %w", i+1, err)
		}
		if s.Kind != "EndpointSlice" {
			continue
		}
		edit(&s)
		out, err := yaml.Marshal(&s)
		if err != nil {
			return nil, fmt.Errorf("encode endpointslice %s: %w", s.Name, err)
		}
		documents[i] = bytes.TrimSuffix(out, []byte("\n"))
	}
	return append(bytes.Join(documents, []byte("\n---\n")), '\n'), nil
}

// addPod makes a pod an endpoint.
func addPod(name string) func(*discovery.EndpointSlice) {
	return func(s *discovery.EndpointSlice) {
		i := slices.IndexFunc(pods, func(p pod) bool { return p.name == name })
		yes, no := true, false
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{
			Addresses:  []string{podAddr(name, s.AddressType == discovery.AddressTypeIPv6).String()},
			NodeName:   &pods[i].node,
			Conditions: discovery.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			TargetRef:  &v1.ObjectReference{Kind: "Pod", Name: name, Namespace: s.Namespace},
		})
	}
}

// terminatePod says what the API server says of a pod that was deleted and still has time to end.
func terminatePod(name string) func(*discovery.EndpointSlice) {
	return func(s *discovery.EndpointSlice) {
		yes, no := true, false
		for i := range s.Endpoints {
			if isPod(name)(s.Endpoints[i]) {
				s.Endpoints[i].Conditions = discovery.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
			}
		}
	}
}

func removePod(name string) func(*discovery.EndpointSlice) {
	return func(s *discovery.EndpointSlice) { s.Endpoints = slices.DeleteFunc(s.Endpoints, isPod(name)) }
}

func removeAllPods(s *discovery.EndpointSlice) { s.Endpoints = []discovery.Endpoint{} }

func isPod(name string) func(discovery.Endpoint) bool {
	return func(e discovery.Endpoint) bool { return e.TargetRef != nil && e.TargetRef.Name == name }
}
