gateway {
  max_operations = "many"
}
driver "native" {}
