package endpoints

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// objectKey names an object of any kind this package reads.
type objectKey struct {
	kind string
	name datapath.Name
}

func (k objectKey) String() string {
	if k.kind == kindNode {
		return "node " + k.name.Name
	}
	return strings.ToLower(k.kind) + " " + k.name.String()
}

const (
	kindService = "Service"
	kindSlice   = "EndpointSlice"
	kindNode    = "Node"
)

// manifestObject is an object of a manifest: exactly one of the pointers is set.
type manifestObject struct {
	key     objectKey
	field   string // where in the file
	service *v1.Service
	slice   *discovery.EndpointSlice
	node    *v1.Node
}

// decoded is what a manifest says.
type decoded struct {
	objects []manifestObject
	faults  []fault
	// broken says that a part of the file could not be read at all, so that objects it used to hold may be missing.
	broken bool
}

func (d *decoded) fault(field, format string, args ...any) {
	d.faults = append(d.faults, faultf(field, format, args...))
}

// decodeManifest reads a file of YAML or JSON documents. Objects this package does not need are named and left out.
func decodeManifest(name string, data []byte) *decoded {
	d := &decoded{}
	if strings.HasSuffix(name, ".json") {
		d.jsonDocuments(data)
	} else {
		d.yamlDocuments(data)
	}
	return d
}

func (d *decoded) jsonDocuments(data []byte) {
	dec := json.NewDecoder(bytes.NewReader(data))
	for i := 1; ; i++ {
		field := fmt.Sprintf("document %d", i)
		var raw json.RawMessage
		switch err := dec.Decode(&raw); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			d.broken = true
			d.fault(field, "%s", oneLine(err))
			return
		}
		d.document(field, "", raw)
	}
}

// maxBroken is after how many broken documents a file is given up: it is no manifest.
const maxBroken = 5

func (d *decoded) yamlDocuments(data []byte) {
	broken := 0
	for i, doc := range splitYAML(data) {
		field := fmt.Sprintf("document %d (line %d)", i+1, doc.line)
		raw, err := yaml.YAMLToJSONStrict(doc.text)
		if err != nil {
			d.broken = true
			d.fault(field, "%s", oneLine(err))
			if broken++; broken >= maxBroken {
				d.fault(field, "gave up after %d documents that cannot be read", broken)
				return
			}
			continue
		}
		if !bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
			d.document(field, "", raw)
		}
	}
}

type yamlDocument struct {
	line int // its first, counted from 1
	text []byte
}

// splitYAML splits at the document markers. What follows a marker on its line belongs to the document.
func splitYAML(data []byte) []yamlDocument {
	var docs []yamlDocument
	start, line, n := 0, 1, 0
	for pos := 0; pos < len(data); {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		n++
		if l := data[pos:end]; (bytes.HasPrefix(l, []byte("---")) || bytes.HasPrefix(l, []byte("..."))) && (len(l) == 3 || bytes.IndexByte([]byte(" \t\r\n"), l[3]) >= 0) {
			if len(bytes.TrimSpace(data[start:pos])) > 0 {
				docs = append(docs, yamlDocument{line, data[start:pos]})
			}
			start, line = pos+3, n
		}
		pos = end
	}
	if len(bytes.TrimSpace(data[start:])) > 0 {
		docs = append(docs, yamlDocument{line, data[start:]})
	}
	return docs
}

// document reads one object; kind is what it is if it does not say so itself, as items of typed lists.
func (d *decoded) document(field, kind string, raw []byte) {
	var head struct {
		metav1.TypeMeta
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		d.broken = true
		d.fault(field, "is not a Kubernetes object")
		return
	}
	if head.Kind == "" && kind != "" {
		head.Kind, head.APIVersion = kind, apiVersions[kind]
	}
	switch head.Kind {
	case "":
		d.fault(field, "kind is missing")
		return
	case "List", kindService + "List", kindSlice + "List", kindNode + "List":
		if strings.Contains(field, "items") {
			d.fault(field, "is a list in a list")
			return
		}
		for i, item := range head.Items {
			d.document(fmt.Sprintf("%s.items[%d]", field, i), strings.TrimSuffix(head.Kind, "List"), item)
		}
		return
	}
	if want, ok := apiVersions[head.Kind]; !ok || head.APIVersion != want {
		d.fault(field, "kind %s of apiVersion %s is not read here", quoteEmpty(clip(head.Kind)), quoteEmpty(clip(head.APIVersion)))
		return
	}
	d.object(manifestObject{key: objectKey{kind: head.Kind}, field: field}, raw)
}

var apiVersions = map[string]string{
	kindService: v1.SchemeGroupVersion.String(),
	kindSlice:   discovery.SchemeGroupVersion.String(),
	kindNode:    v1.SchemeGroupVersion.String(),
}

func (d *decoded) object(o manifestObject, raw []byte) {
	var into any
	var meta *metav1.ObjectMeta
	switch o.key.kind {
	case kindService:
		o.service = &v1.Service{}
		into, meta = o.service, &o.service.ObjectMeta
	case kindSlice:
		o.slice = &discovery.EndpointSlice{}
		into, meta = o.slice, &o.slice.ObjectMeta
	default:
		o.node = &v1.Node{}
		into, meta = o.node, &o.node.ObjectMeta
	}
	unknown, err := kjson.UnmarshalStrict(raw, into)
	if err != nil {
		d.broken = true
		d.fault(o.field, "%s: %s", o.key.kind, oneLine(err))
		return
	}
	if meta.Name == "" {
		d.fault(o.field, "%s: metadata.name is missing", o.key.kind)
		return
	}
	applyDefaults(&o, meta)
	o.key.name = datapath.Name{Namespace: meta.Namespace, Name: meta.Name}
	if len(unknown) > 0 {
		d.fault(o.field, "%s: %s", o.key, oneLine(errors.Join(unknown...)))
	}
	d.objects = append(d.objects, o)
}

// applyDefaults does what the API server does and the reading of objects relies on. The other defaults (protocol TCP,
// the affinity timeout, clusterIPs from clusterIP, ipFamilies) the reading has itself.
func applyDefaults(o *manifestObject, meta *metav1.ObjectMeta) {
	if o.node != nil {
		meta.Namespace = ""
		return
	}
	if meta.Namespace == "" {
		meta.Namespace = metav1.NamespaceDefault
	}
	if o.slice == nil {
		return
	}
	for i := range o.slice.Ports {
		if o.slice.Ports[i].Name == nil {
			o.slice.Ports[i].Name = new(string)
		}
	}
}

// oneLine makes an error fit a line of the log.
func oneLine(err error) string {
	const limit = 300
	s := strings.ToValidUTF8(strings.Join(strings.Fields(err.Error()), " "), "?")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}

func quoteEmpty(s string) string {
	if s == "" {
		return `""`
	}
	return s
}
