// Command kubelet serves what a kubelet streams: port-forwards into pods, by Kubernetes' own library, for tests against a real API server.
//
// A pod is a network namespace: the file that -pods names has "NAMESPACE/NAME": "/path/of/its/netns" in JSON, and is read for each
// request.  A port is connected to as container runtimes do it: on the loopback of that namespace.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

const (
	idleTimeout     = 4 * time.Hour // the kubelet's own, --streaming-connection-idle-timeout
	creationTimeout = 30 * time.Second
	dialTimeout     = 10 * time.Second
)

type kubelet struct{ podsFile string }

// ServeHTTP answers /portForward/NAMESPACE/NAME, by WebSocket or SPDY.
func (k kubelet) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	if len(parts) != 3 || parts[0] != "portForward" {
		http.NotFound(w, req)
		return
	}
	pod := parts[1] + "/" + parts[2]
	if _, err := k.namespaceOf(pod); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	options, err := portforward.NewV4Options(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, req, k, pod, "", options, idleTimeout, creationTimeout, portforward.SupportedProtocols)
}

// PortForward copies between a stream and a port of a pod until one of them ends.
func (k kubelet) PortForward(_ context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	path, err := k.namespaceOf(pod)
	if err != nil {
		return err
	}
	conn, err := dialInside(path, fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		io.Copy(conn, stream)
		conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	return err
}

func (k kubelet) namespaceOf(pod string) (string, error) {
	content, err := os.ReadFile(k.podsFile)
	if err != nil {
		return "", err
	}
	paths := map[string]string{}
	if err := json.Unmarshal(content, &paths); err != nil {
		return "", err
	}
	if path, ok := paths[pod]; ok {
		return path, nil
	}
	return "", fmt.Errorf("pod %s is not on this node", pod)
}

// dialInside connects from within a network namespace.  A socket stays in the namespace that it was made in; the thread that
// went there is not used again.
func dialInside(path, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with this goroutine
		file, err := os.Open(path)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("setns %s: %w", path, err)}
			return
		}
		conn, err := net.DialTimeout("tcp4", address, dialTimeout)
		done <- result{conn, err}
	}()
	got := <-done
	return got.conn, got.err
}

func main() {
	listen := flag.String("listen", "127.0.0.1:10250", "ADDR:PORT, in TLS")
	certificate := flag.String("tls-cert-file", "", "PEM")
	key := flag.String("tls-private-key-file", "", "PEM")
	pods := flag.String("pods", "", "JSON: NAMESPACE/NAME to the path of a network namespace")
	flag.Parse()
	server := &http.Server{Addr: *listen, Handler: kubelet{*pods}, ReadHeaderTimeout: creationTimeout}
	log.Fatal(server.ListenAndServeTLS(*certificate, *key))
}
