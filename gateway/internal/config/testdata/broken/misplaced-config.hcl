driver "native" {}
driver "acme" {
  base = "native"
  config {
    stop_timeout = "3s"
  }
}
driver "far" {
  socket = "unix:///run/far.sock"
  config {
    stop_timeout = "3s"
  }
}
