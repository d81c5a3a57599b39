/* Counts words: count_words(str) -> dict[str, int]. A word is what stands between ASCII white space. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

static const char WHITE_SPACE[] = " \t\n\v\f\r";

static int
count_one(PyObject *counts, const char *word, size_t length)
{
    PyObject *key = PyUnicode_DecodeUTF8(word, (Py_ssize_t)length, NULL);
    if (key == NULL) {
        return -1;
    }
    PyObject *before = PyDict_GetItemWithError(counts, key);
    int status = -1;
    if (before != NULL || !PyErr_Occurred()) {
        PyObject *count = PyLong_FromLong(before == NULL ? 1 : PyLong_AsLong(before) + 1);
        if (count != NULL) {
            status = PyDict_SetItem(counts, key, count);
            Py_DECREF(count);
        }
    }
    Py_DECREF(key);
    return status;
}

static PyObject *
count_words(PyObject *module, PyObject *text)
{
    (void)module;
    /* UTF-8 ends with a zero byte. A text with a zero byte of its own is counted up to that. */
    const char *position = PyUnicode_AsUTF8(text);
    if (position == NULL) {
        return NULL;
    }
    PyObject *counts = PyDict_New();
    if (counts == NULL) {
        return NULL;
    }
    for (position += strspn(position, WHITE_SPACE); *position; position += strspn(position, WHITE_SPACE)) {
        size_t length = strcspn(position, WHITE_SPACE);
        if (count_one(counts, position, length) < 0) {
            Py_DECREF(counts);
            return NULL;
        }
        position += length;
    }
    return counts;
}

static PyMethodDef methods[] = {
    {"count_words", count_words, METH_O, "Return how often each word occurs in a text."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_fast",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__fast(void)
{
    return PyModuleDef_Init(&definition);
}
